#pragma once

#include "cpu/diffusion.h"
#include "cpu/folds.h"
#include "cpu/sequence.h"

namespace pyfold::cpu {

// How direct calls get their threads: torch's, so the ops library fills these in when it is loaded.
using FoldLauncher = void(FoldArgs& args, FoldKernel kernel);
using SequenceLauncher = void(const SequenceArgs& args);
// body(context, begin, end) covers the tasks between them.
using TaskBody = void(const void* context, int64_t begin, int64_t end);
using TaskLauncher = void(const Geometry& geometry, bool noisy, TaskBody* body, const void* context);
struct Launchers {
  FoldLauncher* fold = nullptr;
  SequenceLauncher* sequence = nullptr;
  TaskLauncher* tasks = nullptr;
};
PYFOLD_EXPORT Launchers& launchers();

}  // namespace pyfold::cpu

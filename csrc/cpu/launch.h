#pragma once

#include "cpu/folds.h"
#include "cpu/sequence.h"

namespace pyfold::cpu {

// How folds get their threads: torch's, so the ops library fills these in when it is loaded.
using FoldLauncher = void(FoldArgs& args, FoldKernel kernel);
using SequenceLauncher = void(const SequenceArgs& args);
struct FoldLaunchers {
  FoldLauncher* fold = nullptr;
  SequenceLauncher* sequence = nullptr;
};
PYFOLD_EXPORT FoldLaunchers& fold_launchers();

}  // namespace pyfold::cpu

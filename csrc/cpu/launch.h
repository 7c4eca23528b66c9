#pragma once

#include "cpu/folds.h"
#include "cpu/sequence.h"

namespace pyfold::cpu {

// How folds get their threads: torch's, so the ops library fills these in when it is loaded.
struct FoldLaunchers {
  void (*fold)(FoldArgs& args, FoldKernel kernel) = nullptr;
  void (*sequence)(const SequenceArgs& args) = nullptr;
};
PYFOLD_EXPORT FoldLaunchers& fold_launchers();

}  // namespace pyfold::cpu

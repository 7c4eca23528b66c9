#pragma once

#include <stdint.h>

#include "cpu/tier.h"
#include "folds/sequence.h"

namespace pyfold::cpu {

// Units of one tile, so that its rows stay in a core's caches.
inline int sequence_tile(const SequenceArgs& args) {
  const int rows = sequence_rows(args);
  return rows <= 16 ? 256 : rows <= 64 ? 64 : 16;
}

struct SequenceKernels {
  // Tiles [begin, end) of fold_tiles(args.in_layout, sequence_tile(args)).
  void (*run)(const SequenceArgs& args, int64_t begin, int64_t end);
};

extern const SequenceKernels sequence_kernels_baseline, sequence_kernels_avx2, sequence_kernels_avx512,
    sequence_kernels_neon;
PYFOLD_EXPORT const SequenceKernels& sequence_kernels();

}  // namespace pyfold::cpu

#pragma once

#include <stdint.h>

#include "cpu/tier.h"
#include "folds/fold.h"

namespace pyfold::cpu {

// Units of one tile, a multiple of 8; a kernel call covers tiles [begin, end), tiles_per_group to each group.
constexpr int kFoldTile = 256;
// Tiles whose angle gradients are summed together: fixed, so that the sum does not depend on the number of threads.
constexpr int kFoldSumTiles = 64;

inline int64_t fold_tiles_per_group(const FoldLayout& layout, int units = kFoldTile) {
  return (layout.units_per_group() + units - 1) / units;
}
inline int64_t fold_tiles(const FoldLayout& layout, int units = kFoldTile) {
  return layout.groups * fold_tiles_per_group(layout, units);
}

struct FoldKernels {
  void (*forward)(const FoldArgs& args, int64_t begin, int64_t end);
  void (*backward)(const FoldArgs& args, int64_t begin, int64_t end);
  void (*rotate)(const FoldArgs& args, int64_t begin, int64_t end);
  // Adds the angle derivative of each line to sums[lines].
  void (*angle_grad)(const FoldArgs& args, double* sums, int64_t begin, int64_t end);
  // sin and cos of half of each angle, float32 or float64.
  void (*half_angles)(DType type, const void* angle, int64_t lines, void* sine, void* cosine);
};

using FoldKernel = decltype(FoldKernels::forward);

extern const FoldKernels fold_kernels_baseline, fold_kernels_avx2, fold_kernels_avx512, fold_kernels_neon;
PYFOLD_EXPORT const FoldKernels& fold_kernels();

}  // namespace pyfold::cpu

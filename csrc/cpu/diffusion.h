#pragma once

#include <stdint.h>

#include "cpu/tier.h"
#include "diffusion/affine_step.h"
#include "diffusion/noising.h"
#include "diffusion/randn.h"

namespace pyfold::cpu {

// Lanes of one tile. A kernel call covers tasks [begin, end); task i is tile i % tiles_per_row of row i /
// tiles_per_row. The size is part of the definition of the losses: it fixes the order in which their sums are taken.
constexpr int kTileLanes = 512;

inline int64_t tiles_per_row(const Geometry& geometry) { return (geometry.numel + kTileLanes - 1) / kTileLanes; }
inline int64_t task_count(const Geometry& geometry) { return geometry.rows * tiles_per_row(geometry); }

struct DiffusionKernels {
  void (*randn)(const RandnArgs& args, int64_t begin, int64_t end);
  void (*add_noise)(const NoisingArgs& args, int64_t begin, int64_t end);
  // One sum per task.
  void (*residual_square)(const NoisingArgs& args, double* sums, int64_t begin, int64_t end);
  void (*residual_dot)(const NoisingArgs& args, double* sums, int64_t begin, int64_t end);
  void (*residual_scale)(const NoisingArgs& args, int64_t begin, int64_t end);
  void (*affine_step)(const AffineStepArgs& args, int64_t begin, int64_t end);
};

// One table for each tier that is built; diffusion_kernels() gives the current one.
extern const DiffusionKernels diffusion_kernels_baseline, diffusion_kernels_avx2, diffusion_kernels_avx512,
    diffusion_kernels_neon;
PYFOLD_EXPORT const DiffusionKernels& diffusion_kernels();

}  // namespace pyfold::cpu

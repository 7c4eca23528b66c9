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

// Elements a thread should get at least: waking it costs a few microseconds.
constexpr int64_t kNoiseGrain = 16384;
constexpr int64_t kNoiselessGrain = 65536;

// The same in tasks.
inline int64_t task_grain(const Geometry& geometry, bool noisy) {
  const int64_t tasks = task_count(geometry);
  const int64_t elements = tasks > 0 ? geometry.rows * geometry.numel / tasks : 0;
  return (noisy ? kNoiseGrain : kNoiselessGrain) / (elements > 0 ? elements : 1) + 1;
}
inline bool for_one_thread(const Geometry& geometry, bool noisy) {
  return task_count(geometry) <= task_grain(geometry, noisy);
}

// Whether a call draws noise.
template <class Args>
bool draws_noise(const Args& args) {
  return args.noise.seeds != nullptr;
}
// A residual's does where its target holds noise for any row.
inline bool draws_noise(const NoisingArgs& args) {
  if (!args.prediction) return true;
  for (int64_t row = 0; row < args.geometry.rows; ++row) {
    if (table_row(args.table, kNoisingColumns, row)[kNoising_target_epsilon] != 0) return true;
  }
  return false;
}

struct DiffusionKernels {
  void (*randn)(const RandnArgs& args, int64_t begin, int64_t end);
  void (*add_noise)(const NoisingArgs& args, int64_t begin, int64_t end);
  // One sum per task.
  void (*residual_square)(const NoisingArgs& args, double* sums, int64_t begin, int64_t end);
  void (*residual_dot)(const NoisingArgs& args, double* sums, int64_t begin, int64_t end);
  void (*residual_scale)(const NoisingArgs& args, int64_t begin, int64_t end);
  void (*affine_step)(const AffineStepArgs& args, int64_t begin, int64_t end);
};

// Each row's sum, its tiles in order whatever the number of threads, times factor; wide: to double, else to float.
inline void sum_rows(const Geometry& geometry, const double* sums, double factor, bool wide, void* result) {
  const int64_t tiles = tiles_per_row(geometry);
  for (int64_t row = 0; row < geometry.rows; ++row) {
    double sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) sum += sums[row * tiles + tile];
    if (wide) {
      static_cast<double*>(result)[row] = sum * factor;
    } else {
      static_cast<float*>(result)[row] = static_cast<float>(sum * factor);
    }
  }
}

// One table for each tier that is built; diffusion_kernels() gives the current one.
extern const DiffusionKernels diffusion_kernels_baseline, diffusion_kernels_avx2, diffusion_kernels_avx512,
    diffusion_kernels_neon;
PYFOLD_EXPORT const DiffusionKernels& diffusion_kernels();

}  // namespace pyfold::cpu

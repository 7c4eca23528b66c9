#include "cpu/diffusion.h"

#include "cpu/tile.h"

namespace pyfold {
namespace {

// More than this does not stay in the caches from one call to the next.
constexpr int64_t kCachedBytes = int64_t{16} << 20;

template <class Args>
bool beyond_caches(const Args& args) {
  int64_t bytes = 0;
  args.each_view([&](const View& view) {
    if (view) bytes += args.geometry.rows * args.geometry.numel * size_of(view.dtype);
  });
  return bytes > kCachedBytes;
}
template <class Body>
inline void each_tile(DType state, const Geometry& geometry, bool far, int64_t begin, int64_t end, Body&& body) {
  NormalStream normals;
  if (state == DType::kFloat64) {
    for (int64_t task = begin; task < end; ++task) {
      CpuTile<double> tile(geometry, task, far, normals);
      body(tile, task);
    }
  } else {
    for (int64_t task = begin; task < end; ++task) {
      CpuTile<float> tile(geometry, task, far, normals);
      body(tile, task);
    }
  }
}

void run_randn(const RandnArgs& args, int64_t begin, int64_t end) {
  each_tile(args.out.dtype, args.geometry, false, begin, end, [&](auto& tile, int64_t) { randn(tile, args); });
}

void run_add_noise(const NoisingArgs& args, int64_t begin, int64_t end) {
  each_tile(args.x0.dtype, args.geometry, beyond_caches(args), begin, end,
            [&](auto& tile, int64_t) { add_noise(tile, args); });
}

void run_residual_square(const NoisingArgs& args, double* sums, int64_t begin, int64_t end) {
  each_tile(args.x0.dtype, args.geometry, beyond_caches(args), begin, end,
            [&](auto& tile, int64_t task) { sums[task] = residual_square(tile, args); });
}

void run_residual_dot(const NoisingArgs& args, double* sums, int64_t begin, int64_t end) {
  each_tile(args.x0.dtype, args.geometry, beyond_caches(args), begin, end,
            [&](auto& tile, int64_t task) { sums[task] = residual_dot(tile, args); });
}

void run_residual_scale(const NoisingArgs& args, int64_t begin, int64_t end) {
  each_tile(args.x0.dtype, args.geometry, beyond_caches(args), begin, end,
            [&](auto& tile, int64_t) { residual_scale(tile, args); });
}

void run_affine_step(const AffineStepArgs& args, int64_t begin, int64_t end) {
  each_tile(args.x.dtype, args.geometry, beyond_caches(args), begin, end,
            [&](auto& tile, int64_t) { affine_step(tile, args); });
}

}  // namespace

namespace cpu {

const DiffusionKernels PYFOLD_TIER_SYMBOL(diffusion_kernels) = {
    run_randn, run_add_noise, run_residual_square, run_residual_dot, run_residual_scale, run_affine_step};

}  // namespace cpu
}  // namespace pyfold

#include "cuda/diffusion.h"

#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace pyfold::cuda {
namespace {

constexpr int kThreads = 256;
// Lanes of one thread: 16 bytes of a half type, and whole blocks of noise.
constexpr int kLanes = 8;
// Groups of lanes that one thread of a reduction adds up before its block does.
constexpr int kGroupsPerSum = 4;

__host__ __device__ int64_t groups_per_row(const Geometry& geometry) { return (geometry.numel + kLanes - 1) / kLanes; }

// Each program of csrc/diffusion as a type, so that a kernel can take it.
#define PYFOLD_PROGRAM(Name, function, ArgsType)                               \
  struct Name {                                                                \
    using Args = ArgsType;                                                     \
    template <class Tile>                                                      \
    static __device__ __forceinline__ auto run(Tile& tile, const Args& args) { \
      return function(tile, args);                                             \
    }                                                                          \
  }

PYFOLD_PROGRAM(Randn, pyfold::randn, RandnArgs);
PYFOLD_PROGRAM(AddNoise, pyfold::add_noise, NoisingArgs);
PYFOLD_PROGRAM(ResidualScale, pyfold::residual_scale, NoisingArgs);
PYFOLD_PROGRAM(ResidualSquare, pyfold::residual_square, NoisingArgs);
PYFOLD_PROGRAM(ResidualDot, pyfold::residual_dot, NoisingArgs);
PYFOLD_PROGRAM(AffineStep, pyfold::affine_step, AffineStepArgs);

// The step of most samplers: one model, and nothing kept or read but the state. What the host has seen to be absent no
// thread asks for.
bool is_bare(const AffineStepArgs& args) {
  int present = 0;
  args.each_view([&](const View& view) { present += view ? 1 : 0; });
  return present == 3 && args.models[0];
}
struct BareAffineStep {
  using Args = AffineStepArgs;
  template <class Tile>
  static __device__ __forceinline__ void run(Tile& tile, const Args& args) {
    AffineStepArgs bare;
    bare.table = args.table;
    bare.noise = args.noise;
    bare.x = args.x;
    bare.models[0] = args.models[0];
    bare.out = args.out;
    pyfold::affine_step(tile, bare);
  }
};

template <class Program, class Acc, bool kWhole>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ typename Program::Args args) {
  const int64_t per_row = groups_per_row(args.geometry);
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (group >= args.geometry.rows * per_row) return;
  const int64_t row = group / per_row;
  CudaTile<Acc, kLanes, kWhole> tile(args.geometry, row, (group - row * per_row) * kLanes);
  Program::run(tile, args);
}

template <class Program, class Acc, bool kWhole>
cudaError_t launch_map_as(const typename Program::Args& args, cudaStream_t stream) {
  const int64_t groups = args.geometry.rows * groups_per_row(args.geometry);
  if (groups == 0) return cudaSuccess;
  map_kernel<Program, Acc, kWhole><<<blocks_for(groups, kThreads), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

template <class Program, class WholeProgram = Program>
cudaError_t launch_map(const typename Program::Args& args, DType state, cudaStream_t stream) {
  if (state == DType::kFloat64) return launch_map_as<Program, double, false>(args, stream);
  if (whole<kLanes>(args)) return launch_map_as<WholeProgram, float, true>(args, stream);
  return launch_map_as<Program, float, false>(args, stream);
}

// The sum over a block, in an order that depends on nothing but the block's size; thread 0 has it.
__device__ double block_sum(double value) {
  __shared__ double shared[kThreads];
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  return shared[0];
}

template <class Program, class Acc, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    partial_sum_kernel(const __grid_constant__ typename Program::Args args, double* partial, int64_t partials) {
  const int64_t row = blockIdx.x / partials;
  const int64_t per_row = groups_per_row(args.geometry);
  const int64_t first = (blockIdx.x - row * partials) * kThreads * kGroupsPerSum + threadIdx.x;
  double sum = 0;
  for (int i = 0; i < kGroupsPerSum; ++i) {
    const int64_t group = first + static_cast<int64_t>(i) * kThreads;
    if (group >= per_row) break;
    CudaTile<Acc, kLanes, kWhole> tile(args.geometry, row, group * kLanes);
    sum += Program::run(tile, args);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class Acc>
__global__ void __launch_bounds__(kThreads)
    row_sum_kernel(const double* partial, int64_t partials, double factor, Acc* result) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < partials; i += kThreads) sum += partial[blockIdx.x * partials + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) result[blockIdx.x] = static_cast<Acc>(sum * factor);
}

template <class Program, class Acc>
cudaError_t launch_sum_as(const typename Program::Args& args, double factor, double* partial, Acc* result,
                          cudaStream_t stream) {
  const int64_t partials = partials_per_row(args.geometry);
  const int64_t rows = args.geometry.rows;
  if (rows == 0) return cudaSuccess;
  if (partials > 0) {
    const unsigned blocks = blocks_for(rows * partials);
    constexpr bool kMayBeWhole = sizeof(Acc) == sizeof(float);
    if (kMayBeWhole && whole<kLanes>(args)) {
      partial_sum_kernel<Program, Acc, kMayBeWhole><<<blocks, kThreads, 0, stream>>>(args, partial, partials);
    } else {
      partial_sum_kernel<Program, Acc, false><<<blocks, kThreads, 0, stream>>>(args, partial, partials);
    }
  }
  row_sum_kernel<Acc><<<blocks_for(rows), kThreads, 0, stream>>>(partial, partials, factor, result);
  return cudaGetLastError();
}

template <class Program>
cudaError_t launch_sum(const typename Program::Args& args, double factor, double* partial, void* result,
                       cudaStream_t stream) {
  if (args.x0.dtype == DType::kFloat64) {
    return launch_sum_as<Program>(args, factor, partial, static_cast<double*>(result), stream);
  }
  return launch_sum_as<Program>(args, factor, partial, static_cast<float*>(result), stream);
}

}  // namespace

int64_t partials_per_row(const Geometry& geometry) {
  constexpr int64_t kGroups = static_cast<int64_t>(kThreads) * kGroupsPerSum;
  return (groups_per_row(geometry) + kGroups - 1) / kGroups;
}

cudaError_t randn(const RandnArgs& args, cudaStream_t stream) {
  return launch_map<Randn>(args, args.out.dtype, stream);
}

cudaError_t add_noise(const NoisingArgs& args, cudaStream_t stream) {
  return launch_map<AddNoise>(args, args.x0.dtype, stream);
}

cudaError_t residual_scale(const NoisingArgs& args, cudaStream_t stream) {
  return launch_map<ResidualScale>(args, args.x0.dtype, stream);
}

cudaError_t affine_step(const AffineStepArgs& args, cudaStream_t stream) {
  if (is_bare(args)) return launch_map<AffineStep, BareAffineStep>(args, args.x.dtype, stream);
  return launch_map<AffineStep>(args, args.x.dtype, stream);
}

cudaError_t residual_square(const NoisingArgs& args, double factor, double* partial, void* result,
                            cudaStream_t stream) {
  return launch_sum<ResidualSquare>(args, factor, partial, result, stream);
}

cudaError_t residual_dot(const NoisingArgs& args, double factor, double* partial, void* result, cudaStream_t stream) {
  return launch_sum<ResidualDot>(args, factor, partial, result, stream);
}

}  // namespace pyfold::cuda

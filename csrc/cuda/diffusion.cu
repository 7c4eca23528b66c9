#include "cuda/diffusion.h"

#include "cuda/launch.h"
#include "cuda/pack_tile.cuh"
#include "cuda/warp_tile.cuh"

namespace pyfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = CudaTile<float>::kLanes;
constexpr int kPacks = kLanes / kPack;
// Of a launch whose blocks have parts of rows.
constexpr int64_t kMostRows = 65535;
// Groups of lanes that one thread of a reduction adds up before its block does.
constexpr int kGroupsPerSum = 4;

__host__ __device__ int64_t groups_per_row(const Geometry& geometry) { return (geometry.numel + kLanes - 1) / kLanes; }

// Each program of csrc/diffusion as a type, so that a kernel can take it.
#define PYFOLD_PROGRAM(Name, function, ArgsType, columns)                      \
  struct Name {                                                                \
    using Args = ArgsType;                                                     \
    static constexpr int kColumns = columns;                                   \
    template <class Tile>                                                      \
    static __device__ __forceinline__ auto run(Tile& tile, const Args& args) { \
      return function(tile, args);                                             \
    }                                                                          \
  }

PYFOLD_PROGRAM(Randn, pyfold::randn, RandnArgs, 0);
PYFOLD_PROGRAM(AddNoise, pyfold::add_noise, NoisingArgs, kNoisingColumns);
PYFOLD_PROGRAM(ResidualScale, pyfold::residual_scale, NoisingArgs, kNoisingColumns);
PYFOLD_PROGRAM(ResidualSquare, pyfold::residual_square, NoisingArgs, kNoisingColumns);
PYFOLD_PROGRAM(ResidualDot, pyfold::residual_dot, NoisingArgs, kNoisingColumns);
PYFOLD_PROGRAM(AffineStep, pyfold::affine_step, AffineStepArgs, kStepColumns);

// The step of most samplers: one model, and nothing kept or read but the state. What the host has seen to be absent no
// thread asks for.
bool is_bare(const AffineStepArgs& args) {
  int present = 0;
  args.each_view([&](const View& view) { present += view ? 1 : 0; });
  return present == 3 && args.models[0];
}
struct BareAffineStep {
  using Args = AffineStepArgs;
  static constexpr int kColumns = kStepColumns;
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

template <class Program, class Acc>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ typename Program::Args args) {
  const int64_t per_row = groups_per_row(args.geometry);
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (group >= args.geometry.rows * per_row) return;
  const int64_t row = group / per_row;
  CudaTile<Acc> tile(args.geometry, row, (group - row * per_row) * kLanes);
  Program::run(tile, args);
}

// blockIdx: a part of a row, and the row beyond first_row.
template <class Program>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const __grid_constant__ typename Program::Args args, int64_t first_row) {
  __shared__ SharedRow<Program::kColumns> shared;
  const int64_t row = first_row + blockIdx.y;
  prepare(shared, args, row);
  const uint32_t packs = static_cast<uint32_t>(args.geometry.numel / kPack);
  const uint32_t pack = blockIdx.x * kPacks * blockDim.x + threadIdx.x;
  if (pack >= packs) return;
  PackTile tile(shared, row, pack, packs - pack > blockDim.x ? blockDim.x : 0);
  Program::run(tile, args);
}

// blockIdx: as in pack_kernel.
template <class Program>
__global__ void __launch_bounds__(kThreads)
    warp_kernel(const __grid_constant__ typename Program::Args args, const __grid_constant__ SizeDivisors divisors,
                int64_t first_row) {
  __shared__ SharedRow<Program::kColumns> shared;
  __shared__ alignas(16) WarpTile::Stage stages[kThreads / kWarp];
  const int64_t row = first_row + blockIdx.y;
  prepare(shared, args, row);
  const uint32_t warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / kWarp, 0);
  const uint32_t first = (blockIdx.x * (blockDim.x / kWarp) + warp) * kWarpElements;
  if (first >= static_cast<uint32_t>(args.geometry.numel)) return;
  WarpTile tile(shared, row, args.geometry, divisors, first, stages[warp]);
  Program::run(tile, args);
}

// launch(first row, rows of a launch)
template <class Launch>
cudaError_t each_rows(int64_t rows, Launch&& launch) {
  for (int64_t first = 0; first < rows; first += kMostRows) {
    launch(first, static_cast<unsigned>(rows - first < kMostRows ? rows - first : kMostRows));
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// A launch of blocks that have parts of rows: launch(grid, threads, first row).
template <class Launch>
cudaError_t each_part(const Geometry& geometry, Launch&& launch) {
  const int64_t threads = (geometry.numel / kLanes + 31) / 32 * 32;
  const int block = threads < kThreads ? static_cast<int>(threads) : kThreads;
  const unsigned parts = blocks_for(geometry.numel, static_cast<int64_t>(kLanes) * block);
  return each_rows(geometry.rows, [&](int64_t first, unsigned rows) { launch(dim3(parts, rows), block, first); });
}

template <class Program, class Acc>
cudaError_t launch_map_as(const typename Program::Args& args, cudaStream_t stream) {
  const int64_t groups = args.geometry.rows * groups_per_row(args.geometry);
  if (groups == 0) return cudaSuccess;
  map_kernel<Program, Acc><<<blocks_for(groups, kThreads), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

template <class Program, class RowProgram = Program>
cudaError_t launch_map(const typename Program::Args& args, DType state, cudaStream_t stream) {
  if (state == DType::kFloat64) return launch_map_as<Program, double>(args, stream);
  if (lies_in_packs(args)) {
    return each_part(args.geometry, [&](dim3 grid, int threads, int64_t first) {
      pack_kernel<RowProgram><<<grid, threads, 0, stream>>>(args, first);
    });
  }
  if (lies_in_warps(args)) {
    const typename Program::Args padded = with_dims(args);
    const SizeDivisors divisors(padded.geometry);
    return each_part(args.geometry, [&](dim3 grid, int threads, int64_t first) {
      warp_kernel<RowProgram><<<grid, threads, 0, stream>>>(padded, divisors, first);
    });
  }
  return launch_map_as<Program, float>(args, stream);
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

template <class Program, class Acc>
__global__ void __launch_bounds__(kThreads)
    partial_sum_kernel(const __grid_constant__ typename Program::Args args, double* partial, int64_t partials) {
  const int64_t row = blockIdx.x / partials;
  const int64_t per_row = groups_per_row(args.geometry);
  const int64_t first = (blockIdx.x - row * partials) * kThreads * kGroupsPerSum + threadIdx.x;
  double sum = 0;
  for (int i = 0; i < kGroupsPerSum; ++i) {
    const int64_t group = first + static_cast<int64_t>(i) * kThreads;
    if (group >= per_row) break;
    CudaTile<Acc> tile(args.geometry, row, group * kLanes);
    sum += Program::run(tile, args);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// blockIdx: as in pack_kernel.
template <class Program>
__global__ void __launch_bounds__(kThreads)
    pack_sum_kernel(const __grid_constant__ typename Program::Args args, int64_t first_row, double* partial) {
  __shared__ SharedRow<Program::kColumns> shared;
  const int64_t row = first_row + blockIdx.y;
  prepare(shared, args, row);
  const uint32_t packs = static_cast<uint32_t>(args.geometry.numel / kPack);
  double sum = 0;
  for (int i = 0; i < kGroupsPerSum; ++i) {
    const uint32_t pack = (blockIdx.x * kGroupsPerSum + i) * kPacks * kThreads + threadIdx.x;
    if (pack >= packs) break;
    PackTile tile(shared, row, pack, packs - pack > kThreads ? kThreads : 0);
    sum += Program::run(tile, args);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[row * gridDim.x + blockIdx.x] = sum;
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
  constexpr bool kMayBePacks = sizeof(Acc) == sizeof(float);
  if (kMayBePacks && lies_in_packs(args)) {
    const cudaError_t error = each_rows(rows, [&](int64_t first, unsigned count) {
      const dim3 grid(static_cast<unsigned>(partials), count);
      pack_sum_kernel<Program><<<grid, kThreads, 0, stream>>>(args, first, partial);
    });
    if (error != cudaSuccess) return error;
  } else if (partials > 0) {
    partial_sum_kernel<Program, Acc><<<blocks_for(rows * partials), kThreads, 0, stream>>>(args, partial, partials);
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

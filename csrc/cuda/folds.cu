#include "cuda/folds.h"

#include <algorithm>
#include <utility>

#include "cuda/fold_units.cuh"
#include "cuda/launch.h"
#include "folds/half_angle.h"
#include "folds/reflections.h"

namespace pyfold::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kUnitsOfBlock = kThreads * kUnits;

// FoldArgs as a kernel reads it.
template <class A, class I>
struct Kernel {
  FoldGrid<I> grid;
  const void* in;
  const void* other;
  void* out;
  const A* bias;
  const A* angle;
  const A* weight;
  A gain, clamp;
  uint8_t* bits;
  uint8_t* clamped;
  bool transpose;

  explicit Kernel(const FoldArgs& args)
      : grid(args.layout),
        in(args.in),
        other(args.other),
        out(args.out),
        bias(static_cast<const A*>(args.bias)),
        angle(static_cast<const A*>(args.angle)),
        weight(static_cast<const A*>(args.weight)),
        gain(static_cast<A>(args.gain)),
        clamp(static_cast<A>(args.clamp)),
        bits(args.bits),
        clamped(args.clamped),
        transpose(args.transpose) {
    grid.look_at(in, out, other);
  }
};

// Sines and cosines of the half angles of a block's lines, each made once: [2, lines of the block] in shared memory.
// The place of a line counts from the block's first one.
template <class A, class I>
struct Angles {
  A* sine;
  A* cosine;
  I origin;

  __device__ Angles(const Kernel<A, I>& args, A* shared) : sine(shared) {
    const FoldGrid<I>& grid = args.grid;
    const I byte = static_cast<I>(blockIdx.x) * kThreads, group = grid.group_of(byte);
    const I first = group * grid.units_per_group + (byte - group * grid.bytes_per_group) * kUnits;
    const I last = min(first + static_cast<I>(kUnitsOfBlock), grid.units) - 1;
    origin = grid.by_inner(first);
    const I lines = min(grid.lines, grid.by_inner(last) - origin + 1);
    // A pack of cosines begins where packs may.
    cosine = sine + (lines + kUnits - 1) / kUnits * kUnits;
    for (I place = static_cast<I>(threadIdx.x); place < lines; place += kThreads) {
      half_angle(args.angle[grid.line_of(origin + place)], sine[place], cosine[place]);
    }
    __syncthreads();
  }

  // Bytes that a block needs.
  static int64_t bytes(const FoldGrid<I>& grid) {
    const int64_t lines = std::min<int64_t>(grid.lines, (kUnitsOfBlock - 1) / grid.inner + 2);
    return 2 * (lines + kUnits) * static_cast<int64_t>(sizeof(A));
  }
};

template <class A>
__device__ A* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<A*>(memory);
}

template <class A, class Fold, class I, class Units>
__device__ void parameters([[maybe_unused]] const Angles<A, I>* angles, [[maybe_unused]] const Units& units,
                           A (&out)[2][kUnits]) {
  if constexpr (Fold::kParameters == 2) {
    units.spread(angles->sine, 1, 0, angles->origin, out[0]);
    units.spread(angles->cosine, 1, 0, angles->origin, out[1]);
  }
}

template <class A, int K>
__device__ void values_of(const A (&value)[K][kUnits], int i, A (&v)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) v[k] = value[k][i];
}
template <class A, int K>
__device__ void put_values(A (&value)[K][kUnits], int i, const A (&v)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) value[k][i] = v[k];
}

template <class T, class Fold, class A, class I>
__device__ void forward_units(const Kernel<A, I>& args, const Angles<A, I>* angles) {
  constexpr int K = Fold::kComponents;
  const FoldGrid<I>& grid = args.grid;
  const Units<A, K, I> units(grid, static_cast<I>(blockIdx.x) * kThreads + static_cast<I>(threadIdx.x));
  A value[K][kUnits];
  const bool together = units.eight.together();
  units.eight.template load<T>(args.in, value, together);
  if (units.active) {
    A parameter[2][kUnits];
    parameters<A, Fold>(angles, units, parameter);
    if (args.bias != nullptr) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        A bias[kUnits];
        units.spread(args.bias, grid.line_stride, k * grid.component_stride, 0, bias);
#pragma unroll
        for (int i = 0; i < kUnits; ++i) value[k][i] = value[k][i] + bias[i];
      }
    }
    unsigned byte = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      A v[K];
      [[maybe_unused]] const A p[2] = {parameter[0][i], parameter[1][i]};
      values_of(value, i, v);
      const bool m = Fold::side(v, p);
      Fold::reflect(v, m, p);
      byte |= m ? 1u << i : 0u;
      put_values(value, i, v);
    }
    if (args.bits != nullptr) *units.bits(args.bits) = static_cast<uint8_t>(byte & units.there());
    if (args.gain != 1) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) value[k][i] = value[k][i] * args.gain;
      }
    }
    if (args.clamp > 0) {
      const A high = args.clamp, low = -high;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        unsigned clamped = 0;
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          const A y = value[k][i];
          clamped |= (y > high) | (y < low) ? 1u << i : 0u;
          value[k][i] = y > high ? high : y < low ? low : y;
        }
        if (args.clamped != nullptr) *units.clamped(args.clamped, k) = static_cast<uint8_t>(clamped & units.there());
      }
    }
  }
  units.eight.template store<T>(args.out, value, together);
}

// gain, and zero where the output was clamped: the diagonal part of the derivative.
template <class A, int K, class I>
__device__ void scale_and_mask(const Kernel<A, I>& args, const Units<A, K, I>& units, A (&value)[K][kUnits]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const unsigned clamped = args.clamped != nullptr ? *units.clamped(args.clamped, k) : 0u;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) value[k][i] = (clamped >> i & 1u) != 0u ? A{0} : args.gain * value[k][i];
  }
}

template <class T, class Fold, class A, class I>
__device__ void backward_units(const Kernel<A, I>& args, const Angles<A, I>* angles) {
  constexpr int K = Fold::kComponents;
  const FoldGrid<I>& grid = args.grid;
  const Units<A, K, I> units(grid, static_cast<I>(blockIdx.x) * kThreads + static_cast<I>(threadIdx.x));
  A value[K][kUnits];
  const unsigned byte = units.active ? *units.bits(args.bits) : 0u;
  const bool together = units.eight.together();
  units.eight.template load<T>(args.in, value, together);
  if (units.active) {
    A parameter[2][kUnits];
    parameters<A, Fold>(angles, units, parameter);
    const bool diagonal = args.gain != 1 || args.clamped != nullptr;
    if (diagonal && !args.transpose) scale_and_mask(args, units, value);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      A v[K];
      [[maybe_unused]] const A p[2] = {parameter[0][i], parameter[1][i]};
      values_of(value, i, v);
      Fold::reflect(v, (byte >> i & 1u) != 0u, p);
      put_values(value, i, v);
    }
    if (diagonal && args.transpose) scale_and_mask(args, units, value);
  }
  units.eight.template store<T>(args.out, value, together);
}

template <class A, class T, class Fold, class I>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Kernel<A, I> args) {
  if constexpr (Fold::kParameters == 2) {
    const Angles<A, I> angles(args, shared_memory<A>());
    forward_units<T, Fold>(args, &angles);
  } else {
    forward_units<T, Fold, A, I>(args, nullptr);
  }
}

template <class A, class T, class Fold, class I>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ Kernel<A, I> args) {
  if constexpr (Fold::kParameters == 2) {
    const Angles<A, I> angles(args, shared_memory<A>());
    backward_units<T, Fold>(args, &angles);
  } else {
    backward_units<T, Fold, A, I>(args, nullptr);
  }
}

template <class A, class T, class I>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const __grid_constant__ Kernel<A, I> args) {
  const Units<A, 2, I> units(args.grid, static_cast<I>(blockIdx.x) * kThreads + static_cast<I>(threadIdx.x));
  A value[2][kUnits];
  const unsigned byte = units.active ? *units.bits(args.bits) : 0u;
  const bool together = units.eight.together();
  units.eight.template load<T>(args.in, value, together);
  if (units.active) {
    A weight[kUnits];
    units.spread(args.weight, 1, 0, 0, weight);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      A v[2];
      values_of(value, i, v);
      rotate(v, (byte >> i & 1u) != 0u, weight[i]);
      put_values(value, i, v);
    }
  }
  units.eight.template store<T>(args.out, value, together);
}

// --- the gradient in the angles: sums over the units of each line. A block sums a part of some lines' units, and a
// second kernel the parts. Products of float32 are added eight at a time, and those sums in float64, in an order that
// the layout alone decides.

// How the units of a line are parted, from the layout alone. Where lines lie side by side, a thread has eight lines and
// rows of them; else a block has one line.
struct Parts {
  static constexpr int kRowsOfThread = 8;
  static constexpr int64_t kMaxAcross = int64_t{65535} * kThreads * kUnits;  // lines of a grid's second dimension

  int64_t units;  // of each line
  int64_t size;   // units in a part
  int across;     // threads beside each other that share a row of lines; 0: a block has one line
  int64_t count;

  explicit Parts(const FoldLayout& layout) : units(layout.outer * layout.inner) {
    const int64_t lines = layout.lines();
    const bool rows = layout.inner == 1 && lines > 0 && lines % kUnits == 0 && lines <= kMaxAcross;
    across = rows ? static_cast<int>(std::min<int64_t>(lines / kUnits, kThreads)) : 0;
    size = rows ? kThreads / across * kRowsOfThread : 2 * kUnitsOfBlock;
    count = (units + size - 1) / size;
  }
};

// angle_derivative summed over eight units.
template <class A>
__device__ A sum_of_eight(const A (&g)[2][kUnits], const A (&y)[2][kUnits], unsigned byte) {
  A product[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const A gv[2] = {g[0][i], g[1][i]}, yv[2] = {y[0][i], y[1][i]};
    product[i] = angle_derivative(gv, yv, (byte >> i & 1u) != 0u);
  }
#pragma unroll
  for (int width = kUnits / 2; width > 0; width /= 2) {
#pragma unroll
    for (int i = 0; i < width; ++i) product[i] = product[i] + product[i + width];
  }
  return product[0];
}

// The sum over so many neighbouring lanes (a power of two), in the first of them. Every lane of the warp takes part.
__device__ double sum_over_lanes(double sum, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, distance);
  return sum;
}

// The sum over the block, in its first thread.
__device__ double sum_over_block(double sum) {
  __shared__ double shared[kThreads / 32];
  sum = sum_over_lanes(sum, 32);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) total += shared[w];
  }
  return total;
}

// A block for each part of each line.
template <class A, class T>
__global__ void __launch_bounds__(kThreads)
    line_part_kernel(const __grid_constant__ Kernel<A, int64_t> args, const Parts parts, double* partial) {
  const FoldGrid<int64_t>& grid = args.grid;
  const int64_t line = blockIdx.x / parts.count, part = blockIdx.x - line * parts.count;
  const int64_t end = min(parts.units, (part + 1) * parts.size);
  double sum = 0;
  // Unit number at of the line.
  const auto unit_of = [&](int64_t at) {
    const int64_t outer = grid.by_inner(at);
    return (outer * grid.lines + line) * grid.inner + (at - outer * grid.inner);
  };
  if (grid.whole && grid.inner % kUnits == 0) {
    for (int64_t all = part * parts.size; all < end; all += kUnitsOfBlock) {  // every thread takes part in loads
      const int64_t at = all + threadIdx.x * kUnits;
      const bool has = at < end;
      const int64_t unit = unit_of(has ? at : all);
      const Eight<A, 2, int64_t> eight(grid, unit, has ? kUnits : 0);
      const bool together = eight.together();
      A g[2][kUnits], y[2][kUnits];
      eight.template load<T>(args.in, g, together);
      eight.template load<T>(args.other, y, together);
      sum += static_cast<double>(sum_of_eight(g, y, has ? args.bits[unit / kUnits] : 0u));
    }
  } else {
    for (int64_t at = part * parts.size + threadIdx.x; at < end; at += kThreads) {
      const int64_t unit = unit_of(at), block = grid.block_of<2>(unit);
      const int64_t offset = block * grid.stride + (unit - block * grid.length) * grid.step;
      const T* grad = static_cast<const T*>(args.in) + offset;
      const T* output = static_cast<const T*>(args.other) + offset;
      const A g[2] = {static_cast<A>(widen(grad[0])), static_cast<A>(widen(grad[grid.apart]))};
      const A y[2] = {static_cast<A>(widen(output[0])), static_cast<A>(widen(output[grid.apart]))};
      const int64_t group = grid.groups == 1 ? 0 : unit / grid.units_per_group;
      const int64_t within = unit - group * grid.units_per_group;
      const uint8_t byte = args.bits[group * grid.bytes_per_group + within / kUnits];
      sum += static_cast<double>(angle_derivative(g, y, (byte >> (within % kUnits) & 1) != 0));
    }
  }
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Eight lines for each thread across, and a part of their rows for each block: blockIdx.x is the part, blockIdx.y the
// lines.
template <class A, class T>
__global__ void __launch_bounds__(kThreads)
    row_part_kernel(const __grid_constant__ Kernel<A, int64_t> args, const Parts parts, double* partial) {
  const FoldGrid<int64_t>& grid = args.grid;
  const int down = kThreads / parts.across;  // rows that a block looks at together
  const int y_of = static_cast<int>(threadIdx.x) / parts.across;
  const int x_of = static_cast<int>(threadIdx.x) - y_of * parts.across;
  const int64_t first_line = (static_cast<int64_t>(blockIdx.y) * parts.across + x_of) * kUnits;
  const bool active = y_of < down && first_line < grid.lines;
  double sum[kUnits] = {};
  const int64_t begin = blockIdx.x * parts.size, end = min(parts.units, begin + parts.size);
  for (int64_t rows = begin; rows < end; rows += down) {  // every thread takes part in loads
    const bool has = active && rows + y_of < end;
    const int64_t unit = has ? (rows + y_of) * grid.lines + first_line : 0;
    const Eight<A, 2, int64_t> eight(grid, unit, has ? kUnits : 0);
    A g[2][kUnits], y[2][kUnits];
    const bool together = eight.together();
    eight.template load<T>(args.in, g, together);
    eight.template load<T>(args.other, y, together);
    const unsigned byte = has ? args.bits[unit / kUnits] : 0u;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const A gv[2] = {g[0][i], g[1][i]}, yv[2] = {y[0][i], y[1][i]};
      sum[i] += static_cast<double>(angle_derivative(gv, yv, (byte >> i & 1u) != 0u));
    }
  }
  __shared__ double shared[kUnits][kThreads];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) shared[i][threadIdx.x] = sum[i];
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < parts.across * kUnits; at += kThreads) {
    const int64_t line = (static_cast<int64_t>(blockIdx.y) * parts.across) * kUnits + at;
    if (line >= grid.lines) continue;
    double total = 0;
    for (int y = 0; y < down; ++y) total += shared[at % kUnits][y * parts.across + at / kUnits];
    partial[line * parts.count + blockIdx.x] = total;
  }
}

// So many neighbouring lanes (a power of two) sum the parts of a line.
template <class A>
__global__ void __launch_bounds__(kThreads)
    angle_sum_kernel(int64_t lines, int64_t count, int lanes, const double* partial, A* result) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, line = thread / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  double sum = 0;
  if (line < lines) {
    for (int64_t i = lane; i < count; i += lanes) sum += partial[line * count + i];
  }
  sum = sum_over_lanes(sum, lanes);
  if (lane == 0 && line < lines) result[line] = static_cast<A>(sum);
}

// Calls body(A, T, Fold) with a value of each.
template <class Body>
void with_fold(const FoldArgs& args, Body&& body) {
  const auto with_kind = [&](auto acc, auto element) {
    with_reflection(args.kind, [&](auto fold) { body(acc, element, fold); });
  };
  switch (args.dtype) {
    case DType::kFloat32:
      return with_kind(0.0f, 0.0f);
    case DType::kFloat64:
      return with_kind(0.0, 0.0);
    case DType::kBFloat16:
      return with_kind(0.0f, BFloat16{});
    case DType::kFloat16:
      return with_kind(0.0f, Float16{});
  }
}

// Calls body(blocks, bytes of shared memory, kernel's arguments, T, Fold).
template <class Body>
cudaError_t launch(const FoldArgs& args, Body&& body) {
  const int64_t bytes = args.layout.groups * args.layout.bytes_per_group();
  if (bytes == 0) return cudaSuccess;
  const unsigned blocks = blocks_for(bytes, kThreads);
  with_fold(args, [&](auto acc, auto element, auto fold) {
    using A = decltype(acc);
    const auto with_index = [&](auto index) {
      using I = decltype(index);
      const Kernel<A, I> kernel(args);
      const int64_t shared = decltype(fold)::kParameters == 2 ? Angles<A, I>::bytes(kernel.grid) : 0;
      body(blocks, static_cast<size_t>(shared), kernel, element, fold);
    };
    FoldGrid<int64_t>::fits_32_bits(args.layout) ? with_index(int32_t{0}) : with_index(int64_t{0});
  });
  return cudaGetLastError();
}

template <template <class, class> class K, class A, class I>
std::pair<A, I> types_of(const K<A, I>&);

}  // namespace

cudaError_t fold_forward(const FoldArgs& args, cudaStream_t stream) {
  return launch(args, [&](unsigned blocks, size_t shared, const auto& kernel, auto element, auto fold) {
    using Types = decltype(types_of(kernel));
    forward_kernel<typename Types::first_type, decltype(element), decltype(fold), typename Types::second_type>
        <<<blocks, kThreads, shared, stream>>>(kernel);
  });
}

cudaError_t fold_backward(const FoldArgs& args, cudaStream_t stream) {
  return launch(args, [&](unsigned blocks, size_t shared, const auto& kernel, auto element, auto fold) {
    using Types = decltype(types_of(kernel));
    backward_kernel<typename Types::first_type, decltype(element), decltype(fold), typename Types::second_type>
        <<<blocks, kThreads, shared, stream>>>(kernel);
  });
}

cudaError_t fold_rotate(const FoldArgs& args, cudaStream_t stream) {
  return launch(args, [&](unsigned blocks, size_t, const auto& kernel, auto element, auto) {
    using Types = decltype(types_of(kernel));
    rotate_kernel<typename Types::first_type, decltype(element), typename Types::second_type>
        <<<blocks, kThreads, 0, stream>>>(kernel);
  });
}

int64_t fold_partials(const FoldLayout& layout) { return Parts(layout).count; }

cudaError_t fold_angle_grad(const FoldArgs& args, double* partial, void* result, cudaStream_t stream) {
  const int64_t lines = args.layout.lines();
  const Parts parts(args.layout);
  if (lines == 0) return cudaSuccess;
  with_fold(args, [&](auto acc, auto element, auto) {
    using A = decltype(acc);
    using T = decltype(element);
    const Kernel<A, int64_t> kernel(args);
    if (parts.count > 0 && parts.across != 0 && kernel.grid.whole) {
      const dim3 blocks(blocks_for(parts.count), blocks_for(lines, parts.across * kUnits));
      row_part_kernel<A, T><<<blocks, kThreads, 0, stream>>>(kernel, parts, partial);
    } else if (parts.count > 0) {
      line_part_kernel<A, T><<<blocks_for(lines * parts.count), kThreads, 0, stream>>>(kernel, parts, partial);
    }
    int lanes = 1;
    while (lanes < 32 && lanes < parts.count) lanes *= 2;
    angle_sum_kernel<A><<<blocks_for(lines * lanes, kThreads), kThreads, 0, stream>>>(lines, parts.count, lanes,
                                                                                      partial, static_cast<A*>(result));
  });
  return cudaGetLastError();
}

}  // namespace pyfold::cuda

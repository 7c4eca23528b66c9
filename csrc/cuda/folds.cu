#include "cuda/folds.h"

#include "folds/abs.h"
#include "folds/half_angle.h"
#include "folds/householder.h"
#include "folds/maxmin.h"

namespace pyfold::cuda {
namespace {

constexpr int kThreads = 256;
// A thread folds eight units, so that the byte of their bits is its own.
constexpr int kUnits = 8;

template <class T>
struct alignas(sizeof(T) * kUnits < 16 ? sizeof(T) * kUnits : 16) Pack {
  T value[kUnits];
};

// The units of one thread. Values lie side by side in most layouts and move as packs; else one by one.
template <class A, class T>
struct Units {
  const FoldArgs& args;
  int64_t group, start, first;
  int count;
  FoldRun run;

  __device__ Units(const FoldArgs& args, int64_t thread) : args(args) {
    const FoldLayout& layout = args.layout;
    const int64_t bytes = layout.bytes_per_group();
    group = thread / bytes;
    start = (thread - group * bytes) * kUnits;
    const int64_t left = layout.units_per_group() - start;
    count = left < kUnits ? static_cast<int>(left) : kUnits;
    first = group * layout.units_per_group() + start;
    run = fold_run(layout, first);
  }

  __device__ bool packed(const T* at) const {
    return count == kUnits && run.step == 1 && run.run >= kUnits &&
           reinterpret_cast<uintptr_t>(at) % alignof(Pack<T>) == 0;
  }

  __device__ void load(const void* data, int k, A (&out)[kUnits]) const {
    const T* memory = static_cast<const T*>(data);
    const T* at = memory + run.offset + k * run.apart;
    if (packed(at)) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(at);
#pragma unroll
      for (int i = 0; i < kUnits; ++i) out[i] = static_cast<A>(widen(pack.value[i]));
      return;
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (i >= count) {
        out[i] = 0;
        continue;
      }
      const FoldRun one = fold_run(args.layout, first + i);
      out[i] = static_cast<A>(widen(memory[one.offset + k * one.apart]));
    }
  }

  __device__ void store(void* data, int k, const A (&value)[kUnits]) const {
    T* memory = static_cast<T*>(data);
    T* at = memory + run.offset + k * run.apart;
    if (packed(at)) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < kUnits; ++i) narrow(value[i], pack.value[i]);
      *reinterpret_cast<Pack<T>*>(at) = pack;
      return;
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (i >= count) continue;
      const FoldRun one = fold_run(args.layout, first + i);
      narrow(value[i], memory[one.offset + k * one.apart]);
    }
  }

  __device__ int64_t line(int i) const { return fold_line(args.layout, first + (i < count ? i : 0)); }

  // Whether all eight units have one line; the units of a group may begin anywhere in it.
  __device__ bool one_line() const { return args.layout.inner - first % args.layout.inner >= kUnits; }

  // parameter(line) of each unit, made once where all eight share a line.
  template <class Value>
  __device__ void spread(A (&out)[kUnits], Value&& parameter) const {
    const int64_t first_line = line(0);
    const A shared = parameter(first_line);
    const bool same = one_line();
#pragma unroll
    for (int i = 0; i < kUnits; ++i) out[i] = same ? shared : parameter(line(i));
  }

  __device__ uint8_t* bits() const { return args.bits + group * args.layout.bytes_per_group() + start / kUnits; }
  __device__ uint8_t* clamped(int k) const {
    const FoldLayout& layout = args.layout;
    return args.clamped + (group * layout.components + k) * layout.bytes_per_group() + start / kUnits;
  }
};

template <class A, class Fold, class Units>
__device__ void parameters(const FoldArgs& args, const Units& units, A (&out)[2][kUnits]) {
  if constexpr (Fold::kParameters == 2) {
    const A* angle = static_cast<const A*>(args.angle);
    half_angle(angle[units.line(0)], out[0][0], out[1][0]);
#pragma unroll
    for (int i = 1; i < kUnits; ++i) {
      if (units.one_line()) {
        out[0][i] = out[0][0];
        out[1][i] = out[1][0];
      } else {
        half_angle(angle[units.line(i)], out[0][i], out[1][i]);
      }
    }
  }
}

template <class A, class T, class Fold>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ FoldArgs args) {
  constexpr int K = Fold::kComponents;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= args.layout.groups * args.layout.bytes_per_group()) return;
  const Units<A, T> units(args, thread);
  A value[K][kUnits];
  A parameter[2][kUnits];
  parameters<A, Fold>(args, units, parameter);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    units.load(args.in, k, value[k]);
    if (args.bias == nullptr) continue;
    A bias[kUnits];
    units.spread(bias,
                 [&](int64_t line) { return static_cast<const A*>(args.bias)[fold_channel(args.layout, line, k)]; });
#pragma unroll
    for (int i = 0; i < kUnits; ++i) value[k][i] = value[k][i] + bias[i];
  }
  unsigned byte = 0;
  unsigned clamped[K] = {};
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    A v[K];
    A p[2];
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = value[k][i];
#pragma unroll
    for (int k = 0; k < Fold::kParameters; ++k) p[k] = parameter[k][i];
    const bool m = Fold::side(v, p);
    Fold::reflect(v, m, p);
    if (i < units.count) byte |= static_cast<unsigned>(m) << i;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      A y = args.gain != 1 ? v[k] * static_cast<A>(args.gain) : v[k];
      if (args.clamp > 0) {
        const A high = static_cast<A>(args.clamp), low = -high;
        if (i < units.count) clamped[k] |= static_cast<unsigned>((y > high) | (y < low)) << i;
        y = y > high ? high : y < low ? low : y;
      }
      value[k][i] = y;
    }
  }
  if (args.bits != nullptr) *units.bits() = static_cast<uint8_t>(byte);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (args.clamped != nullptr) *units.clamped(k) = static_cast<uint8_t>(clamped[k]);
    units.store(args.out, k, value[k]);
  }
}

template <class A, class T, class Fold>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ FoldArgs args) {
  constexpr int K = Fold::kComponents;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= args.layout.groups * args.layout.bytes_per_group()) return;
  const Units<A, T> units(args, thread);
  A value[K][kUnits];
  A parameter[2][kUnits];
  parameters<A, Fold>(args, units, parameter);
  unsigned clamped[K] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    units.load(args.in, k, value[k]);
    if (args.clamped != nullptr) clamped[k] = *units.clamped(k);
  }
  const unsigned byte = *units.bits();
  const A gain = static_cast<A>(args.gain);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    A v[K];
    A p[2];
#pragma unroll
    for (int k = 0; k < Fold::kParameters; ++k) p[k] = parameter[k][i];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      v[k] = value[k][i];
      if (!args.transpose) v[k] = (clamped[k] >> i & 1u) != 0u ? A{0} : gain * v[k];
    }
    Fold::reflect(v, (byte >> i & 1u) != 0u, p);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      value[k][i] = !args.transpose ? v[k] : (clamped[k] >> i & 1u) != 0u ? A{0} : gain * v[k];
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) units.store(args.out, k, value[k]);
}

template <class A, class T>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const __grid_constant__ FoldArgs args) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= args.layout.groups * args.layout.bytes_per_group()) return;
  const Units<A, T> units(args, thread);
  A value[2][kUnits];
  A weight[kUnits];
  units.load(args.in, 0, value[0]);
  units.load(args.in, 1, value[1]);
  units.spread(weight, [&](int64_t line) { return static_cast<const A*>(args.weight)[line]; });
  const unsigned byte = *units.bits();
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    A v[2] = {value[0][i], value[1][i]};
    rotate(v, (byte >> i & 1u) != 0u, weight[i]);
    value[0][i] = v[0];
    value[1][i] = v[1];
  }
  units.store(args.out, 0, value[0]);
  units.store(args.out, 1, value[1]);
}

// Units of one line that a block sums.
constexpr int64_t kUnitsPerSum = 16 * kThreads;

__host__ __device__ int64_t units_per_line(const FoldLayout& layout) { return layout.outer * layout.inner; }

template <class A, class T>
__global__ void __launch_bounds__(kThreads)
    angle_partial_kernel(const __grid_constant__ FoldArgs args, int64_t partials, double* partial) {
  const FoldLayout& layout = args.layout;
  const int64_t line = blockIdx.x / partials;
  const int64_t first = (blockIdx.x - line * partials) * kUnitsPerSum;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < first + kUnitsPerSum && i < units_per_line(layout); i += kThreads) {
    const int64_t outer = i / layout.inner;
    const int64_t unit = (outer * layout.lines() + line) * layout.inner + (i - outer * layout.inner);
    const FoldRun run = fold_run(layout, unit);
    const T* grad = static_cast<const T*>(args.in) + run.offset;
    const T* output = static_cast<const T*>(args.other) + run.offset;
    const A g[2] = {static_cast<A>(widen(grad[0])), static_cast<A>(widen(grad[run.apart]))};
    const A y[2] = {static_cast<A>(widen(output[0])), static_cast<A>(widen(output[run.apart]))};
    const int64_t group = unit / layout.units_per_group();
    const int64_t within = unit - group * layout.units_per_group();
    const uint8_t byte = args.bits[group * layout.bytes_per_group() + within / 8];
    sum += static_cast<double>(angle_derivative(g, y, (byte >> (within % 8) & 1) != 0));
  }
  __shared__ double shared[kThreads];
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = shared[0];
}

template <class A>
__global__ void angle_sum_kernel(int64_t lines, int64_t partials, const double* partial, A* result) {
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (line >= lines) return;
  double sum = 0;
  for (int64_t i = 0; i < partials; ++i) sum += partial[line * partials + i];
  result[line] = static_cast<A>(sum);
}

// Calls body(A, T, Fold) with a value of each.
template <class Body>
void with_fold(const FoldArgs& args, Body&& body) {
  const auto with_kind = [&](auto acc, auto element) {
    switch (args.kind) {
      case FoldKind::kAbs:
        return body(acc, element, AbsFold{});
      case FoldKind::kMaxMin:
        return body(acc, element, MaxMinFold{});
      case FoldKind::kHouseholder:
        return body(acc, element, HouseholderFold{});
    }
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

template <class Body>
cudaError_t launch(const FoldArgs& args, Body&& body) {
  const int64_t bytes = args.layout.groups * args.layout.bytes_per_group();
  if (bytes == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>((bytes + kThreads - 1) / kThreads);
  with_fold(args, [&](auto acc, auto element, auto fold) { body(blocks, acc, element, fold); });
  return cudaGetLastError();
}

}  // namespace

cudaError_t fold_forward(const FoldArgs& args, cudaStream_t stream) {
  return launch(args, [&](unsigned blocks, auto acc, auto element, auto fold) {
    forward_kernel<decltype(acc), decltype(element), decltype(fold)><<<blocks, kThreads, 0, stream>>>(args);
  });
}

cudaError_t fold_backward(const FoldArgs& args, cudaStream_t stream) {
  return launch(args, [&](unsigned blocks, auto acc, auto element, auto fold) {
    backward_kernel<decltype(acc), decltype(element), decltype(fold)><<<blocks, kThreads, 0, stream>>>(args);
  });
}

cudaError_t fold_rotate(const FoldArgs& args, cudaStream_t stream) {
  return launch(args, [&](unsigned blocks, auto acc, auto element, auto) {
    rotate_kernel<decltype(acc), decltype(element)><<<blocks, kThreads, 0, stream>>>(args);
  });
}

int64_t fold_partials(const FoldLayout& layout) { return (units_per_line(layout) + kUnitsPerSum - 1) / kUnitsPerSum; }

cudaError_t fold_angle_grad(const FoldArgs& args, double* partial, void* result, cudaStream_t stream) {
  const int64_t lines = args.layout.lines(), partials = fold_partials(args.layout);
  if (lines == 0) return cudaSuccess;
  with_fold(args, [&](auto acc, auto element, auto) {
    using A = decltype(acc);
    if (partials > 0) {
      angle_partial_kernel<A, decltype(element)>
          <<<static_cast<unsigned>(lines * partials), kThreads, 0, stream>>>(args, partials, partial);
    }
    angle_sum_kernel<A><<<static_cast<unsigned>((lines + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        lines, partials, partial, static_cast<A*>(result));
  });
  return cudaGetLastError();
}

}  // namespace pyfold::cuda

#include "cuda/sequence.h"

#include "cuda/fold_units.cuh"
#include "cuda/launch.h"

namespace pyfold::cuda {
namespace {

// Rows live in shared memory, where an instruction may index them; this much is there without asking for more.
constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int kMaxThreads = 256;

// Of so many units each.
unsigned blocks_for(const FoldLayout& layout, int units_of_block) {
  return cuda::blocks_for(layout.groups * layout.bytes_per_group() * kUnits, units_of_block);
}

// Where the values of a unit lie; of the output, beside the grid of the input.
template <class I>
struct Places {
  I length, stride, step, apart;
  Divisor<I> by_length;

  __host__ __device__ explicit Places(const FoldGrid<I>& grid)
      : length(grid.length), stride(grid.stride), step(grid.step), apart(grid.apart), by_length(grid.by_length) {}

  __device__ I offset(I unit) const {
    const I block = stride == 0 ? 0 : by_length(unit);
    return block * stride + (unit - block * length) * step;
  }
};

// The unit of a thread. Eight neighbouring threads share a byte of every plane, so units are counted up to a multiple
// of eight in each group, and those past its end take part without memory of their own.
template <class I>
struct Place {
  I group, byte, unit;
  bool active;

  // byte_of_all: the number of a byte of a plane in all groups; lane: of the eight units there.
  __device__ Place(const FoldGrid<I>& grid, I byte_of_all, int lane) {
    group = grid.group_of(byte_of_all);
    byte = byte_of_all - group * grid.bytes_per_group;
    const I within = byte * kUnits + lane;
    active = byte_of_all < grid.bytes && within < grid.units_per_group;
    unit = active ? group * grid.units_per_group + within : 0;
  }
};

// folds/sequence.h's Tile on a GPU: one unit a thread.
template <class A, class T>
class CudaRows {
 public:
  __device__ CudaRows(const SequenceArgs& args, const FoldGrid<int64_t>& grid, A* shared)
      : args_(args), grid_(grid), rows_(shared + threadIdx.x) {
    const int64_t byte_of_all = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kUnits;
    const Place<int64_t> place(grid, byte_of_all, threadIdx.x % kUnits);
    active_ = place.active;
    writes_ = args.bits != nullptr && byte_of_all < grid.bytes && threadIdx.x % kUnits == 0;
    unit_ = place.unit;
    bits_ = args.bits + place.group * args.planes * grid.bytes_per_group + place.byte;
  }

  __device__ A* row(int r) { return rows_ + r * blockDim.x; }
  __device__ A* scratch() { return &scratch_; }
  __device__ int lanes() const { return 1; }
  __device__ uint8_t* flags(int k) { return flags_ + k; }

  __device__ void write(int plane, const uint8_t* flags) const {
    const unsigned word = __ballot_sync(0xFFFFFFFFu, active_ && *flags != 0);
    if (writes_) bits_[plane * grid_.bytes_per_group] = static_cast<uint8_t>(word >> (threadIdx.x % 32));
  }
  __device__ void read(int plane, uint8_t* flags) const {
    *flags = active_ ? bits_[plane * grid_.bytes_per_group] >> (threadIdx.x % kUnits) & 1 : 0;
  }

  __device__ void load() {
    const Places<int64_t> places(grid_);
    const T* at = static_cast<const T*>(args_.in) + places.offset(unit_);
    const int64_t passed = grid_.by_inner(unit_), line = grid_.line_of(passed);
    const A* bias = static_cast<const A*>(args_.bias) + line * grid_.line_stride;
    for (int k = 0; k < args_.in_layout.components; ++k) {
      A value = active_ ? static_cast<A>(widen(at[k * places.apart])) : A{0};
      if (args_.bias != nullptr && active_) value = value + bias[k * grid_.component_stride];
      *row(k) = value;
    }
  }
  __device__ void store(const Places<int64_t>& places) {
    if (!active_) return;
    T* at = static_cast<T*>(args_.out) + places.offset(unit_);
    for (int k = 0; k < args_.out_layout.components; ++k) narrow(*row(k), at[k * places.apart]);
  }

 private:
  const SequenceArgs& args_;
  const FoldGrid<int64_t>& grid_;
  A* rows_;
  A scratch_;
  uint8_t flags_[2];
  uint8_t* bits_;
  int64_t unit_;
  bool active_, writes_;
};

template <class A, class T>
__global__ void __launch_bounds__(kMaxThreads, 4)
    sequence_kernel(const __grid_constant__ SequenceArgs args, const __grid_constant__ FoldGrid<int64_t> grid,
                    const __grid_constant__ Places<int64_t> out) {
  extern __shared__ unsigned char shared[];
  CudaRows<A, T> rows(args, grid, reinterpret_cast<A*>(shared));
  rows.load();
  SequenceRunner<A, CudaRows<A, T>>(args, rows).run();
  rows.store(out);
}
static_assert(sizeof(SequenceArgs) + sizeof(FoldGrid<int64_t>) + sizeof(Places<int64_t>) <= 4096);

// --- units of one value: eight of them a thread, in registers

// SequenceRunner's Tile for them: every row is the one there is.
template <class A, class T>
class CudaValues {
 public:
  using Index = int32_t;

  __device__ CudaValues(const SequenceArgs& args, const FoldGrid<Index>& grid)
      : args_(args), units_(grid, static_cast<Index>(blockIdx.x * kMaxThreads + threadIdx.x)) {}

  __device__ A* row(int) { return value_[0]; }
  __device__ A* scratch() { return scratch_; }
  __device__ static constexpr int lanes() { return kUnits; }
  __device__ uint8_t* flags(int k) { return flags_[k]; }

  __device__ void write(int plane, const uint8_t* flags) const {
    if (args_.bits == nullptr || !units_.active) return;
    unsigned byte = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) byte |= flags[i] != 0 ? 1u << i : 0u;
    args_.bits[at(plane)] = static_cast<uint8_t>(byte & units_.there());
  }
  __device__ void read(int plane, uint8_t* flags) const {
    const unsigned byte = units_.active ? args_.bits[at(plane)] : 0u;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) flags[i] = byte >> i & 1u;
  }

  __device__ void load() {
    together_ = units_.eight.together();
    units_.eight.template load<T>(args_.in, value_, together_);
    if (args_.bias == nullptr || !units_.active) return;
    A bias[kUnits];
    units_.spread(static_cast<const A*>(args_.bias), 1, 0, 0, bias);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) value_[0][i] = value_[0][i] + bias[i];
  }
  __device__ void store() { units_.eight.template store<T>(args_.out, value_, together_); }

 private:
  __device__ Index at(int plane) const { return plane * units_.grid.bytes_per_group + units_.thread; }  // of one group

  const SequenceArgs& args_;
  const Units<A, 1, Index> units_;
  bool together_;
  A value_[1][kUnits];
  A scratch_[kUnits];
  uint8_t flags_[2][kUnits];
};

template <class A, class T>
__global__ void __launch_bounds__(kMaxThreads)
    value_kernel(const __grid_constant__ SequenceArgs args, const __grid_constant__ FoldGrid<int32_t> grid) {
  CudaValues<A, T> values(args, grid);
  values.load();
  SequenceRunner<A, CudaValues<A, T>>(args, values).run();
  values.store();
}

template <class A, class T>
bool launch_values(const SequenceArgs& args, cudaStream_t stream) {
  const FoldLayout& layout = args.in_layout;
  const bool fits = FoldGrid<int32_t>::fits_32_bits(layout) && layout.bytes_per_group() * args.planes <= INT32_MAX;
  if (sequence_rows(args) != 1 || !fits) return false;
  FoldGrid<int32_t> grid(layout);
  grid.look_at(args.in, args.out);
  value_kernel<A, T><<<blocks_for(layout, kMaxThreads * kUnits), kMaxThreads, 0, stream>>>(args, grid);
  return true;
}

// --- sorts of 2, 4, 8 and 16: the same network of swaps, in registers

// Batcher's, as pyfold/folds/program.py makes it.
template <int W>
struct SortingNetwork {
  int count = 0;
  int i[64] = {}, j[64] = {};

  constexpr SortingNetwork() {
    for (int p = W / 2; p > 0; p /= 2) {
      for (int q = W / 2, r = 0, distance = p;; distance = q - p, q /= 2, r = p) {
        for (int k = 0; k < W - distance; ++k) {
          if ((k & p) == r) i[count] = k, j[count] = k + distance, ++count;
        }
        if (q == p) break;
      }
    }
  }

  bool is(const SequenceArgs& args) const {
    if (args.count != count || args.planes != count || args.in_layout.components != W) return false;
    for (int k = 0; k < count; ++k) {
      const FoldInstruction& in = args.instructions[k];
      if (in.op != static_cast<int>(FoldOp::kSwap) || in.i != i[k] || in.j != j[k] || in.plane != k) return false;
    }
    return true;
  }
};

template <class I>
struct Sort {
  FoldGrid<I> grid;
  const void* in;
  void* out;
  const void* bias;
  uint8_t* bits;
  SequenceMode mode;
  bool packed;  // the values of a unit lie side by side, and move as a pack

  explicit Sort(const SequenceArgs& args)
      : grid(args.in_layout), in(args.in), out(args.out), bias(args.bias), bits(args.bits), mode(args.mode) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    packed = grid.apart == 1 && grid.step != 1 && aligned(in) && aligned(out);
  }
};

template <int count, class Body>
__device__ __forceinline__ void unrolled(const Body& body) {
#pragma unroll
  for (int k = 0; k < count; ++k) body(k);
}

template <class A, class T, int W, class I>
__global__ void __launch_bounds__(kMaxThreads) sort_kernel(const __grid_constant__ Sort<I> args) {
  constexpr SortingNetwork<W> network;
  constexpr int kCount = network.count;
  const FoldGrid<I>& grid = args.grid;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const I thread = static_cast<I>(blockIdx.x) * kMaxThreads + static_cast<I>(threadIdx.x);
  const Place<I> place(grid, thread / kUnits, lane % kUnits);
  const Places<I> places(grid);
  const I offset = places.offset(place.unit);
  const T* from = static_cast<const T*>(args.in) + offset;
  A v[W];
  using Row = Neighbours<Pack<T, W>, true, I>;
  const bool together = args.packed && __all_sync(0xFFFFFFFFu, place.active);
  if (args.packed) {
    // Unit 0 for those that there are not.
    const Pack<T, W> pack = together ? Row(offset).load(static_cast<const T*>(args.in)) : Pack<T, W>::load(from);
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = static_cast<A>(widen(pack.value[k]));
  } else {
#pragma unroll
    for (int k = 0; k < W; ++k, from += places.apart) v[k] = static_cast<A>(widen(*from));
  }
  if (args.bias != nullptr) {
    const I line = grid.line_of(grid.by_inner(place.unit));
    const A* bias = static_cast<const A*>(args.bias) + line * grid.line_stride;
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = v[k] + bias[k * grid.component_stride];
  }
  const auto swap = [&](int s, bool m) {
    A pair[2] = {v[network.i[s]], v[network.j[s]]};
    MaxMinFold::reflect(pair, m, pair);
    v[network.i[s]] = pair[0];
    v[network.j[s]] = pair[1];
  };
  if (args.mode == SequenceMode::kForward && args.bits == nullptr) {
    unrolled<kCount>([&](int s) {
      const A pair[2] = {v[network.i[s]], v[network.j[s]]};
      swap(s, MaxMinFold::side(pair, pair));
    });
  } else if (args.mode == SequenceMode::kForward) {
    // Of each eight planes, lane l keeps the warp's word of plane l / 4, and writes its byte l % 4.
    unsigned words[(kCount + 7) / 8] = {};
    unrolled<kCount>([&](int s) {
      const A pair[2] = {v[network.i[s]], v[network.j[s]]};
      const bool m = MaxMinFold::side(pair, pair);
      const unsigned word = __ballot_sync(0xFFFFFFFFu, m && place.active);
      if (lane / 4 == s % 8) words[s / 8] = word;
      swap(s, m);
    });
    const I byte_of_all = (thread - lane) / kUnits + lane % 4;
    const Place<I> to(grid, byte_of_all, 0);
    if (byte_of_all < grid.bytes) {
      uint8_t* at = args.bits + (to.group * kCount + lane / 4) * grid.bytes_per_group + to.byte;
#pragma unroll
      for (int c = 0; c < (kCount + 7) / 8; ++c, at += 8 * grid.bytes_per_group) {
        if (8 * c + lane / 4 < kCount) *at = static_cast<uint8_t>(words[c] >> lane % 4 * 8);
      }
    }
  } else if (place.active) {
    const uint8_t* bits = args.bits + place.group * kCount * grid.bytes_per_group + place.byte;
    uint8_t bytes[kCount];
#pragma unroll
    for (int s = 0; s < kCount; ++s, bits += grid.bytes_per_group) bytes[s] = *bits;
    const unsigned mine = 1u << lane % kUnits;
    if (args.mode == SequenceMode::kTangent) {
      unrolled<kCount>([&](int s) { swap(s, (bytes[s] & mine) != 0); });
    } else {
      unrolled<kCount>([&](int s) { swap(kCount - 1 - s, (bytes[kCount - 1 - s] & mine) != 0); });
    }
  }
  T* to = static_cast<T*>(args.out) + offset;
  if (args.packed) {
    Pack<T, W> pack;
#pragma unroll
    for (int k = 0; k < W; ++k) narrow(v[k], pack.value[k]);
    if (together) {
      Row(offset).store(static_cast<T*>(args.out), pack);
    } else if (place.active) {
      pack.store(to);
    }
  } else if (place.active) {
#pragma unroll
    for (int k = 0; k < W; ++k, to += places.apart) narrow(v[k], *to);
  }
}

template <class A, class T, int W>
bool launch_sort(const SequenceArgs& args, cudaStream_t stream) {
  constexpr SortingNetwork<W> network;
  if (!network.is(args)) return false;
  const unsigned blocks = blocks_for(args.in_layout, kMaxThreads);
  if (FoldGrid<int64_t>::fits_32_bits(args.in_layout)) {
    sort_kernel<A, T, W, int32_t><<<blocks, kMaxThreads, 0, stream>>>(Sort<int32_t>(args));
  } else {
    sort_kernel<A, T, W, int64_t><<<blocks, kMaxThreads, 0, stream>>>(Sort<int64_t>(args));
  }
  return true;
}

template <class A, class T>
cudaError_t launch(const SequenceArgs& args, cudaStream_t stream) {
  const FoldGrid<int64_t> grid(args.in_layout);
  if (grid.bytes == 0) return cudaSuccess;
  if (launch_sort<A, T, 2>(args, stream) || launch_sort<A, T, 4>(args, stream) || launch_sort<A, T, 8>(args, stream) ||
      launch_sort<A, T, 16>(args, stream) || launch_values<A, T>(args, stream)) {
    return cudaGetLastError();
  }
  const int64_t row_bytes = static_cast<int64_t>(sequence_rows(args)) * sizeof(A);
  int threads = kMaxThreads;
  while (threads > 32 && row_bytes * threads > kSharedBytes) threads /= 2;
  static_assert(kMaxRows * 32 * sizeof(double) <= kSharedBytes);
  sequence_kernel<A, T>
      <<<blocks_for(args.in_layout, threads), threads, static_cast<size_t>(row_bytes * threads), stream>>>(
          args, grid, Places<int64_t>(FoldGrid<int64_t>(args.out_layout)));
  return cudaGetLastError();
}

}  // namespace

cudaError_t fold_sequence(const SequenceArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case DType::kFloat32:
      return launch<float, float>(args, stream);
    case DType::kFloat64:
      return launch<double, double>(args, stream);
    case DType::kBFloat16:
      return launch<float, BFloat16>(args, stream);
    case DType::kFloat16:
      return launch<float, Float16>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace pyfold::cuda

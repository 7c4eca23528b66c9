#include "cuda/sequence.h"

namespace pyfold::cuda {
namespace {

// Rows live in shared memory, where an instruction may index them; this much is there without asking for more.
constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int kMaxThreads = 256;

// folds/sequence.h's Tile on a GPU: one unit a thread. Eight neighbouring threads share a byte of every plane, so units
// are counted up to a multiple of eight in each group, and those past its end take part without memory of their own.
template <class A, class T>
class CudaRows {
 public:
  __device__ CudaRows(const SequenceArgs& args, A* shared) : args_(args), rows_(shared + threadIdx.x) {
    const FoldLayout& layout = args.in_layout;
    const int64_t bytes = layout.bytes_per_group();
    const int64_t place = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    group_ = place / 8 / bytes;
    const int64_t within = place - group_ * bytes * 8;
    byte_ = within / 8;
    in_group_ = group_ < layout.groups;
    active_ = in_group_ && within < layout.units_per_group();
    unit_ = active_ ? group_ * layout.units_per_group() + within : 0;
  }

  __device__ A* row(int r) { return rows_ + r * blockDim.x; }
  __device__ A* scratch() { return &scratch_; }
  __device__ int lanes() const { return 1; }
  __device__ uint8_t* flags(int k) { return flags_ + k; }

  __device__ void write(int plane, const uint8_t* flags) const {
    const unsigned word = __ballot_sync(0xFFFFFFFFu, active_ && *flags != 0);
    if (args_.bits == nullptr || !in_group_ || threadIdx.x % 8 != 0) return;
    *bits(plane) = static_cast<uint8_t>(word >> (threadIdx.x % 32));
  }
  __device__ void read(int plane, uint8_t* flags) const {
    *flags = active_ ? *bits(plane) >> (threadIdx.x % 8) & 1 : 0;
  }

  __device__ void load() {
    const FoldRun run = fold_run(args_.in_layout, unit_);
    const int64_t line = fold_line(args_.in_layout, unit_);
    for (int k = 0; k < args_.in_layout.components; ++k) {
      A value = 0;
      if (active_) {
        value = static_cast<A>(widen(static_cast<const T*>(args_.in)[run.offset + k * run.apart]));
        if (args_.bias != nullptr) {
          value = value + static_cast<const A*>(args_.bias)[fold_channel(args_.in_layout, line, k)];
        }
      }
      *row(k) = value;
    }
  }
  __device__ void store() {
    if (!active_) return;
    const FoldRun run = fold_run(args_.out_layout, unit_);
    for (int k = 0; k < args_.out_layout.components; ++k) {
      narrow(*row(k), static_cast<T*>(args_.out)[run.offset + k * run.apart]);
    }
  }

 private:
  __device__ uint8_t* bits(int plane) const {
    return args_.bits + (group_ * args_.planes + plane) * args_.in_layout.bytes_per_group() + byte_;
  }

  const SequenceArgs& args_;
  A* rows_;
  A scratch_;
  uint8_t flags_[2];
  int64_t group_, byte_, unit_;
  bool in_group_, active_;
};

template <class A, class T>
__global__ void __launch_bounds__(kMaxThreads) sequence_kernel(const __grid_constant__ SequenceArgs args) {
  extern __shared__ unsigned char shared[];
  CudaRows<A, T> rows(args, reinterpret_cast<A*>(shared));
  rows.load();
  SequenceRunner<A, CudaRows<A, T>>(args, rows).run();
  rows.store();
}

template <class A, class T>
cudaError_t launch(const SequenceArgs& args, cudaStream_t stream) {
  const int64_t row_bytes = static_cast<int64_t>(sequence_rows(args)) * sizeof(A);
  int threads = kMaxThreads;
  while (threads > 32 && row_bytes * threads > kSharedBytes) threads /= 2;
  static_assert(kMaxRows * 32 * sizeof(double) <= kSharedBytes);
  const int64_t units = args.in_layout.groups * args.in_layout.bytes_per_group() * 8;
  if (units == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>((units + threads - 1) / threads);
  sequence_kernel<A, T><<<blocks, threads, static_cast<size_t>(row_bytes * threads), stream>>>(args);
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

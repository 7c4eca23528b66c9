#pragma once

#include "cuda/tile.cuh"

// Where all operands lie in whole packs, a block has a part of one row: what is the row's is made once for the block,
// and a thread's two packs lie a block's width apart, so that each access of a warp fills the sectors that it touches.
namespace pyfold {
namespace {

// A block of noise, 16 bytes of float32.
constexpr int kPack = 4;
static_assert(kPack == kNormalsPerBlock);
// Smaller rows would leave most of a warp without work.
constexpr int64_t kSmallestPackedRow = 64;

template <class Args>
bool lies_in_packs(const Args& args) {
  const int64_t numel = args.geometry.numel;
  bool all = numel % kPack == 0 && numel >= kSmallestPackedRow && numel / kPack <= INT32_MAX;
  const Window& window = args.noise.window;
  if (args.noise.seeds != nullptr) all = all && window.flat && window.base % kNormalsPerBlock == 0;
  args.each_view([&](const View& view) {
    if (!view) return;
    all = all && view.flat && reinterpret_cast<uintptr_t>(view.data) % (kPack * size_of(view.dtype)) == 0;
    all = all && (args.geometry.rows == 1 || view.row_stride % kPack == 0);
  });
  return all;
}

// A row's coefficients, as they are and converted, and its noise.
template <int kColumns>
struct SharedRow {
  static constexpr int kCells = kColumns > 0 ? kColumns : 1;
  float values[kCells];
  double cells[kCells];
  alignas(16) NoiseKey key;
};

struct SharedColumn {
  const float* value;
  const double* cell;

  __device__ __forceinline__ operator float() const { return *value; }
};

struct SharedCells {
  const float* values;
  const double* cells;

  __device__ __forceinline__ SharedColumn operator[](int column) const { return {values + column, cells + column}; }
};

// By all threads of a block, of which there are 32 or more.
template <int kColumns, class Args>
__device__ __forceinline__ void prepare(SharedRow<kColumns>& shared, const Args& args, int64_t row) {
  static_assert(kColumns < 32);
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kColumns > 0) {
    if (thread < kColumns) {
      const double cell = table_row(args.table, kColumns, row)[thread];
      shared.cells[thread] = cell;
      shared.values[thread] = static_cast<float>(cell);
    }
  }
  // Read ahead where there is no noise, too.
  if (thread == 31) shared.key = args.noise.seeds != nullptr ? noise_key(args.noise, row) : NoiseKey{};
  __syncthreads();
}

class PackTile : public ThreadTile<PackTile, float> {
  using Base = ThreadTile<PackTile, float>;
  friend Base;

 public:
  using Base::load;
  using Cells = SharedCells;

  // Packs pack and pack + apart of a row; apart 0: the first alone.
  template <int kColumns>
  __device__ __forceinline__ PackTile(const SharedRow<kColumns>& shared, int64_t row, uint32_t pack, uint32_t apart)
      : cells_{shared.values, shared.cells}, key_(shared.key), row_(row), pack_(pack), apart_(apart) {}

  __device__ __forceinline__ int64_t row() const { return row_; }
  __device__ __forceinline__ Cells cells(const Table&, int64_t) const { return cells_; }

  __device__ __forceinline__ void load(Register& out, const Noise& noise) const {
    NoiseKey key = key_;
    if (noise.counter != nullptr) key = with_counter(key, noise_counter(*noise.counter));
    const uint64_t block = static_cast<uint64_t>(noise.source.window.base) / kNormalsPerBlock + pack_;
    float normals[kPack];
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; i += kPack) {
      device_normal_block(key, i == 0 ? block : block + apart_, normals);
      PYFOLD_UNROLL
      for (int j = 0; j < kPack; ++j) out.lane[i + j] = normals[j];
    }
  }

  __device__ __forceinline__ double dot(const Register& x, const Register& y) const {
    float sum = 0;
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (i < kPack || apart_ != 0) sum += x.lane[i] * y.lane[i];
    }
    return static_cast<double>(sum);
  }

 private:
  template <class T>
  using Word = std::conditional_t<sizeof(T) == 4, uint4, uint2>;

  template <class T>
  __device__ __forceinline__ Word<T>* first_of(const View& view) const {
    return reinterpret_cast<Word<T>*>(static_cast<T*>(view.data) + row_ * view.row_stride) + pack_;
  }

  template <class T>
  __device__ __forceinline__ void load_as(Register& out, const View& view) const {
    const Word<T>* first = first_of<T>(view);
    // Without a second pack the first once more, which nobody stores.
    const Word<T> words[2] = {first[0], first[apart_]};
    T values[kLanes];
    memcpy(values, words, sizeof words);
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) out.lane[i] = widen(values[i]);
  }

  template <class T>
  __device__ __forceinline__ void store_as(const View& view, const Register& value) const {
    T values[kLanes];
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) narrow(value.lane[i], values[i]);
    Word<T> words[2];
    memcpy(words, values, sizeof words);
    Word<T>* first = first_of<T>(view);
    __stwb(first, words[0]);
    if (apart_ != 0) __stwb(first + apart_, words[1]);
  }

  SharedCells cells_;
  const NoiseKey& key_;
  int64_t row_;
  uint32_t pack_, apart_;
};

}  // namespace
}  // namespace pyfold

#pragma once

#include "cuda/tile.cuh"

// A block has a part of one row: what is the row's is made once for the block, in shared memory.
namespace pyfold {
namespace {

// A block of noise; of float32, 16 bytes.
constexpr int kPack = 4;
static_assert(kPack == kNormalsPerBlock);

// Whether noise, if there is any, starts at a block of it and goes on in order.
inline bool lies_in_blocks(const NoiseSource& noise) {
  return noise.seeds == nullptr || (noise.window.flat && noise.window.base % kNormalsPerBlock == 0);
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

template <class Tile>
class RowTile : public ThreadTile<Tile, float> {
 public:
  using Cells = SharedCells;

  template <int kColumns>
  __device__ __forceinline__ RowTile(const SharedRow<kColumns>& shared, int64_t row)
      : cells_{shared.values, shared.cells}, key_(shared.key), row_(row) {}

  __device__ __forceinline__ int64_t row() const { return row_; }
  __device__ __forceinline__ Cells cells(const Table&, int64_t) const { return cells_; }

 protected:
  __device__ __forceinline__ NoiseKey key_of(const Noise& noise) const {
    return noise.counter != nullptr ? with_counter(key_, noise_counter(*noise.counter)) : key_;
  }
  // That element 0 of the row lies in.
  static __device__ __forceinline__ uint64_t first_block(const Noise& noise) {
    return static_cast<uint64_t>(noise.source.window.base) / kNormalsPerBlock;
  }

 private:
  SharedCells cells_;
  const NoiseKey& key_;

 protected:
  int64_t row_;
};

}  // namespace
}  // namespace pyfold

#pragma once

#include "cuda/row_tile.cuh"

// Where all operands lie in whole packs: a thread's two lie a block's width apart, so that each access of a warp fills
// the sectors that it touches.
namespace pyfold {
namespace {

// Smaller rows would leave most of a warp without work.
constexpr int64_t kSmallestPackedRow = 64;

template <class Args>
bool lies_in_packs(const Args& args) {
  const int64_t numel = args.geometry.numel;
  bool all = numel % kPack == 0 && numel >= kSmallestPackedRow && numel / kPack <= INT32_MAX;
  all = all && lies_in_blocks(args.noise);
  args.each_view([&](const View& view) {
    if (!view) return;
    all = all && view.flat && reinterpret_cast<uintptr_t>(view.data) % (kPack * size_of(view.dtype)) == 0;
    all = all && (args.geometry.rows == 1 || view.row_stride % kPack == 0);
  });
  return all;
}

class PackTile : public RowTile<PackTile> {
  using Base = ThreadTile<PackTile, float>;
  friend Base;

 public:
  using Base::load;

  // Packs pack and pack + apart of a row; apart 0: the first alone.
  template <int kColumns>
  __device__ __forceinline__ PackTile(const SharedRow<kColumns>& shared, int64_t row, uint32_t pack, uint32_t apart)
      : RowTile(shared, row), pack_(pack), apart_(apart) {}

  __device__ __forceinline__ void load(Register& out, const Noise& noise) const {
    const NoiseKey key = key_of(noise);
    const uint64_t block = first_block(noise) + pack_;
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

  uint32_t pack_, apart_;
};

}  // namespace
}  // namespace pyfold

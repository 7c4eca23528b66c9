#pragma once

#include <type_traits>

#include "core/lanes.h"
#include "core/normal.h"
#include "cuda/normals.cuh"
#include "diffusion/program.h"

namespace pyfold {
namespace {

// Out of line: few layouts need them, and they would fill every kernel many times over. The key comes in words: a
// reference to it would put it into local memory.
__device__ __noinline__ int64_t strided_offset(const View& view, const Geometry& geometry, int64_t i) {
  return offset_of(view, geometry, i);
}

__device__ __noinline__ float normal_at(uint32_t seed_low, uint32_t seed_high, uint32_t stream, uint32_t step,
                                        uint64_t first_block, const Window& window, const Geometry& geometry,
                                        int64_t i) {
  const NoiseKey key = {seed_low, seed_high, stream, step, first_block};
  const int64_t element = window.base + offset_of(window, geometry, i);
  float normals[kNormalsPerBlock];
  device_normal_block(key, static_cast<uint64_t>(element) / kNormalsPerBlock, normals);
  // A select, not an indexed read: registers have no addresses.
  const int which = static_cast<int>(element % kNormalsPerBlock);
  const float low = which == 0 ? normals[0] : normals[1];
  const float high = which == 2 ? normals[2] : normals[3];
  return which < 2 ? low : high;
}

// diffusion/program.h's Tile on a GPU: the lanes of one thread, in registers. What two tiles share; each has load_as,
// store_as, and how noise is loaded.
template <class Tile, class A>
class ThreadTile {
 public:
  using Acc = A;
  // 16 bytes of a half type, and whole blocks of noise.
  static constexpr int kLanes = 8;
  struct Register {
    A lane[kLanes];

    template <class C>
    friend PYFOLD_HD Term<C, Register> operator*(C coefficient, const Register& value) {
      return {coefficient, value};
    }
  };

  __device__ __forceinline__ void load(Register& out, const View& view) const {
    if constexpr (sizeof(A) == 8) {
      self().template load_as<double>(out, view);
    } else if (view.dtype == DType::kFloat32) {
      self().template load_as<float>(out, view);
    } else if (view.dtype == DType::kBFloat16) {
      self().template load_as<BFloat16>(out, view);
    } else {
      self().template load_as<Float16>(out, view);
    }
  }

  __device__ __forceinline__ void store(const View& view, const Register& value) const {
    if constexpr (sizeof(A) == 8) {
      self().template store_as<double>(view, value);
    } else if (view.dtype == DType::kFloat32) {
      self().template store_as<float>(view, value);
    } else if (view.dtype == DType::kBFloat16) {
      self().template store_as<BFloat16>(view, value);
    } else {
      self().template store_as<Float16>(view, value);
    }
  }

  template <class Terms>
  __device__ __forceinline__ void let(Register& out, const Terms& sum) const {
    add_up(self(), out, sum);
  }
  template <class Terms, class C>
  __device__ __forceinline__ void let(Register& out, const Clipped<Terms, C>& clipped) const {
    add_up(self(), out, clipped.terms);
    // Most rows clip nothing.
    const A low = clipped.low, high = clipped.high;
    if (low > -INFINITY || high < INFINITY) clip(out.lane, low, high, kLanes);
  }
  template <class Terms>
  __device__ __forceinline__ void write(const View& view, Register& out, const Terms& sum) const {
    let(out, sum);
    store(view, out);
  }
  __device__ __forceinline__ void write(const View& view, Register& out, const Noise& noise) const {
    self().load(out, noise);
    store(view, out);
  }
  __device__ __forceinline__ void keep(Register&) const {}
  __device__ __forceinline__ void subtract(Register& out, const Register& x, const Register& y) const {
    pyfold::subtract(out.lane, x.lane, y.lane, kLanes);
  }

 private:
  __device__ __forceinline__ const Tile& self() const { return static_cast<const Tile&>(*this); }
};

// Of any layout: lanes that follow one another, moved in 128-bit accesses where they lie together.
template <class A>
class CudaTile : public ThreadTile<CudaTile<A>, A> {
  using Base = ThreadTile<CudaTile<A>, A>;
  friend Base;

 public:
  using Base::kLanes;
  using Base::load;
  using typename Base::Register;
  using Cells = TableCells<A>;

  __device__ __forceinline__ CudaTile(const Geometry& geometry, int64_t row, int64_t start)
      : geometry_(geometry), row_(row), start_(start) {
    const int64_t left = geometry.numel - start;
    count_ = left < kLanes ? static_cast<int>(left) : kLanes;
  }

  __device__ __forceinline__ int64_t row() const { return row_; }
  __device__ __forceinline__ Cells cells(const Table& table, int64_t columns) const {
    return {table_row(table, columns, row_)};
  }

  __device__ __forceinline__ void load(Register& out, const Noise& noise) const {
    const NoiseKey key = noise.key(row_);
    const Window& window = noise.source.window;
    const int64_t first = window.base + start_;
    const bool blocks = window.flat && first % kNormalsPerBlock == 0;
    if (blocks) {
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; i += kNormalsPerBlock) {
        float normals[kNormalsPerBlock];
        device_normal_block(key, static_cast<uint64_t>(first + i) / kNormalsPerBlock, normals);
        PYFOLD_UNROLL
        for (int j = 0; j < kNormalsPerBlock; ++j) out.lane[i + j] = static_cast<A>(normals[j]);
      }
    } else {
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        out.lane[i] = i < count_ ? static_cast<A>(normal_at(key.seed_low, key.seed_high, key.stream, key.step,
                                                            key.first_block, window, geometry_, start_ + i))
                                 : A{0};
      }
    }
  }

  __device__ __forceinline__ double dot(const Register& x, const Register& y) const {
    A sum = 0;
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (i < count_) sum += x.lane[i] * y.lane[i];
    }
    return static_cast<double>(sum);
  }

 private:
  template <class T>
  struct alignas(sizeof(T) * kLanes < 16 ? sizeof(T) * kLanes : 16) Pack {
    T value[kLanes];
  };

  // As wide as the pack: a struct that is assigned, nvcc stores value by value on some architectures.
  template <class T>
  static __device__ __forceinline__ void store_pack(Pack<T>* to, const Pack<T>& pack) {
    using Wide = std::conditional_t<sizeof(pack) % 16 == 0, uint4, uint2>;
    static_assert(sizeof(pack) % sizeof(Wide) == 0);
    constexpr int kWides = sizeof(pack) / sizeof(Wide);
    Wide wide[kWides];
    memcpy(wide, &pack, sizeof pack);
    PYFOLD_UNROLL
    for (int i = 0; i < kWides; ++i) __stwb(reinterpret_cast<Wide*>(to) + i, wide[i]);
  }

  // All lanes of a flat operand, if they can move as one Pack.
  template <class T>
  __device__ __forceinline__ bool packed(const View& view, const T* first) const {
    return view.flat && count_ == kLanes && reinterpret_cast<uintptr_t>(first) % alignof(Pack<T>) == 0;
  }

  // body(lane, offset): along the innermost dimension offsets are a stride apart, and only its end costs divisions.
  template <class Body>
  __device__ __forceinline__ void each_lane(const View& view, Body&& body) const {
    const bool flat = view.flat;
    const int inner = flat ? 0 : geometry_.ndim - 1;
    const int64_t stride = flat ? 1 : view.stride[inner];
    int64_t offset = flat ? start_ : strided_offset(view, geometry_, start_);
    int64_t left = flat ? kLanes : geometry_.size[inner] - start_ % geometry_.size[inner];
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      body(i, offset);
      offset += stride;
      if (--left == 0 && i + 1 < kLanes) {
        offset = strided_offset(view, geometry_, start_ + i + 1);
        left = geometry_.size[inner];
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void load_as(Register& out, const View& view) const {
    const T* row = static_cast<const T*>(view.data) + row_ * view.row_stride;
    if (packed(view, row + start_)) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(row + start_);
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; ++i) out.lane[i] = widen(pack.value[i]);
      return;
    }
    each_lane(view,
              [&](int i, int64_t offset) { out.lane[i] = i < count_ ? static_cast<A>(widen(row[offset])) : A{0}; });
  }

  template <class T>
  __device__ __forceinline__ void store_as(const View& view, const Register& value) const {
    T* row = static_cast<T*>(view.data) + row_ * view.row_stride;
    if (packed(view, row + start_)) {
      Pack<T> pack;
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; ++i) narrow(value.lane[i], pack.value[i]);
      store_pack(reinterpret_cast<Pack<T>*>(row + start_), pack);
      return;
    }
    each_lane(view, [&](int i, int64_t offset) {
      if (i < count_) narrow(value.lane[i], row[offset]);
    });
  }

  const Geometry& geometry_;
  int64_t row_;
  int64_t start_;
  int count_;
};

}  // namespace
}  // namespace pyfold

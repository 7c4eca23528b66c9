#pragma once

#include "cuda/divisor.cuh"
#include "cuda/row_tile.cuh"

// Where an operand lies in some other way: a warp has a stretch of the row, of which its threads take neighbouring
// elements by turns, so that an access of a warp to a flat operand touches as few sectors as it can, wherever the row
// begins.
namespace pyfold {
namespace {

constexpr int kWarp = 32;
// Of a warp; it counts as many beyond a row's end.
constexpr uint32_t kWarpElements = CudaTile<float>::kLanes * kWarp;
// Smaller rows would leave most of a warp without work.
constexpr int64_t kSmallestRowOfWarps = 128;
// Of a row. One number for all, and known here, or a thread would keep strides in its local memory.
constexpr int kWarpDims = 3;

template <class Args>
bool lies_in_warps(const Args& args) {
  const Geometry& geometry = args.geometry;
  bool all = geometry.numel >= kSmallestRowOfWarps && geometry.numel + kWarpElements <= INT32_MAX;
  all = all && geometry.ndim <= kWarpDims && lies_in_blocks(args.noise);
  args.each_view([&](const View& view) {
    int64_t last = 0;
    for (int d = 0; d < geometry.ndim; ++d) last += (geometry.size[d] - 1) * view.stride[d];
    all = all && (!view || last <= INT32_MAX);
  });
  return all;
}

// The arguments with rows of kWarpDims dimensions, the first ones of size 1 where they had fewer.
template <class Args>
Args with_dims(Args args) {
  const auto pad = [added = kWarpDims - args.geometry.ndim](int64_t* of_dims, int64_t first) {
    for (int d = kWarpDims - 1; d >= 0; --d) of_dims[d] = d < added ? first : of_dims[d - added];
  };
  args.each_view([&](const View& view) { pad(const_cast<View&>(view).stride, 0); });
  pad(args.geometry.size, 1);
  args.geometry.ndim = kWarpDims;
  return args;
}

// n / size of a dimension but the first. By a size of 1 nothing but 0 is ever divided.
struct SizeDivisors {
  cuda::Divisor<int32_t> by[kWarpDims];

  explicit SizeDivisors(const Geometry& geometry) {
    for (int d = 1; d < kWarpDims; ++d) by[d] = {geometry.size[d], geometry.numel + kWarpElements};
  }
  __device__ uint32_t operator()(uint32_t n, int d) const {
    return static_cast<uint32_t>(by[d].multiplied(static_cast<int32_t>(n)));
  }
};

class WarpTile : public RowTile<WarpTile> {
  using Base = ThreadTile<WarpTile, float>;
  friend Base;

 public:
  using Base::load;
  using Stage = float[kWarpElements];

  // The elements from first on; stage: memory of the warp.
  template <int kColumns>
  __device__ __forceinline__ WarpTile(const SharedRow<kColumns>& shared, int64_t row, const Geometry& geometry,
                                      const SizeDivisors& divisors, uint32_t first, Stage& stage)
      : RowTile(shared, row),
        geometry_(geometry),
        divisors_(divisors),
        stage_(stage),
        first_(first),
        end_(static_cast<uint32_t>(geometry.numel)),
        lane_(threadIdx.x % kWarp) {}

  // A thread makes whole blocks of noise, of which the warp's threads then take their elements.
  __device__ __forceinline__ void load(Register& out, const Noise& noise) const {
    const NoiseKey key = key_of(noise);
    const uint64_t block = first_block(noise) + first_ / kPack + lane_;
    __syncwarp();
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes / kPack; ++i) {
      float normals[kPack];
      device_normal_block(key, block + i * kWarp, normals);
      reinterpret_cast<float4*>(stage_)[i * kWarp + lane_] = {normals[0], normals[1], normals[2], normals[3]};
    }
    __syncwarp();
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) out.lane[i] = stage_[i * kWarp + lane_];
  }

 private:
  // Sums of 32 bits wrap; what they add up to fits.
  __device__ __forceinline__ uint32_t strided(const View& view, uint32_t element) const {
    return strided_offset_of(view, geometry_, kWarpDims, element, divisors_);
  }
  // Whether the warp's elements lie in one line of the innermost dimension.
  __device__ __forceinline__ bool in_line() const {
    const uint32_t size = static_cast<uint32_t>(geometry_.size[kWarpDims - 1]);
    return first_ - divisors_(first_, kWarpDims - 1) * size + kWarpElements <= size;
  }

  // body(lane, element's address) for each element that there is.
  template <class T, class Body>
  __device__ __forceinline__ void each_lane(const View& view, Body&& body) const {
    T* row = static_cast<T*>(view.data) + row_ * view.row_stride;
    if (view.flat && first_ + kWarpElements <= end_) {
      T* at = row + first_ + lane_;
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; ++i) body(i, at + i * kWarp);
    } else if (!view.flat && in_line()) {
      const uint32_t step = static_cast<uint32_t>(view.stride[kWarpDims - 1]);
      T* at = row + strided(view, first_) + static_cast<uint64_t>(lane_) * step;
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; ++i) body(i, at + static_cast<uint64_t>(step) * (i * kWarp));
    } else {
      PYFOLD_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        const uint32_t element = first_ + lane_ + i * kWarp;
        if (element < end_) body(i, row + (view.flat ? element : strided(view, element)));
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void load_as(Register& out, const View& view) const {
    T values[kLanes] = {};
    each_lane<const T>(view, [&](int i, const T* from) { values[i] = *from; });
    PYFOLD_UNROLL
    for (int i = 0; i < kLanes; ++i) out.lane[i] = widen(values[i]);
  }

  template <class T>
  __device__ __forceinline__ void store_as(const View& view, const Register& value) const {
    each_lane<T>(view, [&](int i, T* to) { narrow(value.lane[i], *to); });
  }

  const Geometry& geometry_;
  const SizeDivisors& divisors_;
  Stage& stage_;
  uint32_t first_, end_, lane_;
};

}  // namespace
}  // namespace pyfold

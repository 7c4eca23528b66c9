#pragma once

#include <stdint.h>

#include <utility>

#include "core/dtype.h"
#include "core/macros.h"

// How an operand lies in memory. Every op of the diffusion family runs over rows (samples) of numel elements; element i
// of a row is the i-th in row-major order, whatever the strides.
namespace pyfold {

constexpr int kMaxDims = 8;

// Strides count elements. data is null where an optional operand is absent.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  bool flat = true;  // a row lies in memory in row-major order without gaps
  int64_t row_stride = 0;
  int64_t stride[kMaxDims] = {};

  PYFOLD_HD explicit operator bool() const { return data != nullptr; }
};

struct Geometry {
  int64_t rows = 0;
  int64_t numel = 1;  // of one row
  int ndim = 0;       // dimensions of a row
  int64_t size[kMaxDims] = {};
};

// The logical element that a position has in the whole sample: a shard of a sample is a window of it.
struct Window {
  int64_t base = 0;
  bool flat = true;
  int64_t stride[kMaxDims] = {};
};

namespace {

// Offset, in elements, of element i of a row of so many dimensions; divide(i, d) divides by the size of one of them.
template <class I, class Strided, class Divide>
PYFOLD_HD I strided_offset_of(const Strided& view, const Geometry& geometry, int ndim, I i, Divide&& divide) {
  I offset = 0;
  for (int d = ndim - 1; d > 0; --d) {
    const I quotient = divide(i, d);
    offset += (i - quotient * static_cast<I>(geometry.size[d])) * static_cast<I>(view.stride[d]);
    i = quotient;
  }
  return ndim > 0 ? offset + i * static_cast<I>(view.stride[0]) : offset;
}

template <class Strided>
PYFOLD_HD int64_t offset_of(const Strided& view, const Geometry& geometry, int64_t i) {
  if (view.flat) return i;
  return strided_offset_of(view, geometry, geometry.ndim, i, [&](int64_t n, int d) { return n / geometry.size[d]; });
}

// Dimensions from the farthest apart to the nearest in the first operand's memory, for elements that may come in any
// order; the window is of those that may not, and goes along.
inline void order_by_memory(Geometry& geometry, View* const* views, int count, Window& window) {
  for (int d = 1; d < geometry.ndim; ++d) {
    for (int at = d; at > 0 && views[0]->stride[at - 1] < views[0]->stride[at]; --at) {
      for (int v = 0; v < count; ++v) std::swap(views[v]->stride[at - 1], views[v]->stride[at]);
      std::swap(geometry.size[at - 1], geometry.size[at]);
    }
  }
  int64_t stride = 1;
  for (int d = geometry.ndim - 1; d >= 0; stride *= geometry.size[d--]) window.stride[d] = stride;
}

// Merges dimensions that every strided operand walks as one, then marks the flat ones.
inline void collapse(Geometry& geometry, View* const* views, int count, Window& window, bool in_order = true) {
  if (!in_order) order_by_memory(geometry, views, count, window);
  const auto mergeable = [&](int outer, int inner) {
    for (int v = 0; v < count; ++v) {
      if (views[v]->stride[outer] != geometry.size[inner] * views[v]->stride[inner]) return false;
    }
    return window.stride[outer] == geometry.size[inner] * window.stride[inner];
  };
  const auto move = [&](int from, int to) {
    for (int v = 0; v < count; ++v) views[v]->stride[to] = views[v]->stride[from];
    window.stride[to] = window.stride[from];
    geometry.size[to] = geometry.size[from];
  };
  int kept = 0;
  for (int d = 0; d < geometry.ndim; ++d) {
    if (geometry.size[d] == 1) continue;
    if (kept > 0 && mergeable(kept - 1, d)) {
      const int64_t size = geometry.size[kept - 1] * geometry.size[d];
      move(d, kept - 1);
      geometry.size[kept - 1] = size;
    } else {
      move(d, kept++);
    }
  }
  geometry.ndim = kept;
  const auto row_major = [&](const int64_t* stride) {
    int64_t expected = 1;
    for (int d = kept - 1; d >= 0; --d) {
      if (stride[d] != expected) return false;
      expected *= geometry.size[d];
    }
    return true;
  };
  for (int v = 0; v < count; ++v) views[v]->flat = row_major(views[v]->stride);
  window.flat = row_major(window.stride);
}

}  // namespace
}  // namespace pyfold

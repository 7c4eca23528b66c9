#pragma once

#include <stdint.h>

#include "folds/fold.h"

// The layout of a tensor from its sizes and strides; on the host.
namespace pyfold {

// Fills in outer, channels and inner of a layout whose units and groups are given, for a dense tensor in any memory
// order. order has room for ndim numbers. Returns null, or what is wrong.
inline const char* fold_layout(FoldLayout& layout, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                               int64_t dim, int64_t* order) {
  layout.outer = layout.channels = layout.inner = 1;
  if (layout.halves && layout.components > 2) return "halves pair channels two by two";
  if (ndim == 0) {
    return layout.components == 1 && layout.groups == 1 ? nullptr
                                                        : "units of several channels need a channel dimension";
  }
  if (dim < 0 || dim >= ndim) return "dim is out of range";
  // By falling strides; dimensions of size one lie anywhere, and equal ones stay in order.
  for (int64_t d = 0; d < ndim; ++d) {
    int64_t at = d;
    for (; at > 0 && strides[order[at - 1]] < strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  layout.channels = sizes[dim];
  bool before = true;
  int64_t numel = 1;
  for (int64_t i = 0; i < ndim; ++i) {
    const int64_t d = order[i];
    numel *= sizes[d];
    if (d == dim) {
      before = false;
    } else {
      (before ? layout.outer : layout.inner) *= sizes[d];
    }
  }
  int64_t expected = 1;
  for (int64_t i = ndim - 1; i >= 0 && numel != 0; --i) {
    if (sizes[order[i]] == 1) continue;
    if (strides[order[i]] != expected) return "the tensor must be dense";
    expected *= sizes[order[i]];
  }
  if (layout.channels % layout.components != 0) return "units must divide the channels";
  if (layout.groups < 1 || layout.units() % layout.groups != 0) return "groups must divide the units";
  return nullptr;
}

}  // namespace pyfold

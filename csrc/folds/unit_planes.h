#pragma once

#include <math.h>

#include <vector>

#include "core/tensor_ref.h"

// The parameters of a program of planes, on the host: of each its unit normal and its offset. Made in float64, by the
// operations and in the order of pyfold/folds/hyperplane.py, so that the bits are those of torch.
namespace pyfold {

// Whether normal is [C] or [K, C], and offset one value or K.
inline bool unit_planes_fit(const TensorRef& normal, const TensorRef& offset) {
  const int64_t planes = normal.ndim == 2 ? normal.sizes[0] : 1;
  return (normal.ndim == 1 || normal.ndim == 2) && offset.ndim <= 1 && (offset.ndim == 0 || offset.sizes[0] == planes);
}

// out is [K (C + 1)], float64 where wide, else float32.
inline void unit_planes(const TensorRef& normal, const TensorRef& offset, void* out, bool wide) {
  const int64_t channels = normal.sizes[normal.ndim - 1], size = channels + 1, stride = normal.strides[normal.ndim - 1];
  const int64_t planes = normal.ndim == 2 ? normal.sizes[0] : 1, next = normal.ndim == 2 ? normal.strides[0] : 0;
  std::vector<double> unit(size), squares(size);
  for (int64_t k = 0; k < planes; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      unit[c] = value_at(normal, k * next + c * stride);
      squares[c] = unit[c] * unit[c];
    }
    for (int64_t length = channels, half; length > 1; length = half) {
      half = (length + 1) / 2;
      for (int64_t c = 0; c + half < length; ++c) squares[c] += squares[c + half];
    }
    const double norm = sqrt(squares[0]);
    for (int64_t c = 0; c < channels; ++c) unit[c] /= norm;
    unit[channels] = entry_of(offset, k);
    for (int64_t c = 0; c < size; ++c) {
      if (wide) {
        static_cast<double*>(out)[k * size + c] = unit[c];
      } else {
        static_cast<float*>(out)[k * size + c] = static_cast<float>(unit[c]);
      }
    }
  }
}

}  // namespace pyfold

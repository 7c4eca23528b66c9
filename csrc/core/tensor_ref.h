#pragma once

#include <stdint.h>
#include <stdlib.h>

#include "core/dtype.h"

namespace pyfold {

// What operands hold: the dtypes of the kernels, in the order of DType, integers that count, bits, and words of keys.
enum class Element : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16, kInt64, kUInt8, kUInt64, kOther };

constexpr int32_t kCpu = 1, kCuda = 2;  // device types, by DLPack's numbers
constexpr int kMostDims = 64;           // torch's own limit

// A tensor as every front end describes it; its owner lives at least as long as the call. Strides count elements.
struct TensorRef {
  void* data;
  Element type;
  int32_t device_type, device_index;
  int32_t ndim;
  const int64_t* sizes;
  const int64_t* strides;

  bool floating() const { return type <= Element::kFloat16; }
  DType dtype() const { return static_cast<DType>(type); }
  int64_t element_size() const {
    if (type == Element::kInt64 || type == Element::kUInt64) return 8;
    return type == Element::kUInt8 ? 1 : size_of(dtype());
  }
  int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < ndim; ++d) count *= sizes[d];
    return count;
  }
  // Whether the elements lie in order of their indices, without gaps.
  bool contiguous() const {
    int64_t expected = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (sizes[d] == 0) return true;
      if (sizes[d] != 1 && strides[d] != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }
  bool same_sizes(const TensorRef& other) const {
    bool same = ndim == other.ndim;
    for (int d = 0; same && d < ndim; ++d) same = sizes[d] == other.sizes[d];
    return same;
  }
  bool same_strides(const TensorRef& other) const {
    bool same = ndim == other.ndim;
    for (int d = 0; same && d < ndim; ++d) same = sizes[d] == 1 || strides[d] == other.strides[d];
    return same;
  }
};

// --- on the host alone

// A number as a floating tensor of no dimensions.
inline TensorRef tensor_of(double& number) { return {&number, Element::kFloat64, kCpu, 0, 0, nullptr, nullptr}; }

// Of a floating tensor on the CPU, so many elements from its first.
inline double value_at(const TensorRef& tensor, int64_t at) {
  switch (tensor.dtype()) {
    case DType::kFloat32:
      return static_cast<const float*>(tensor.data)[at];
    case DType::kFloat64:
      return static_cast<const double*>(tensor.data)[at];
    case DType::kBFloat16:
      return widen(static_cast<const BFloat16*>(tensor.data)[at]);
    default:
      return widen(static_cast<const Float16*>(tensor.data)[at]);
  }
}
// Of a vector, or the one value that there is.
inline double entry_of(const TensorRef& tensor, int64_t at) {
  return value_at(tensor, tensor.ndim == 0 || tensor.sizes[0] == 1 ? 0 : at * tensor.strides[0]);
}

// The bytes [low, high) that a tensor lies in.
struct Range {
  uintptr_t low, high;
};
inline Range range_of(const TensorRef& tensor) {
  int64_t low = 0, high = 1;
  for (int d = 0; d < tensor.ndim; ++d) {
    if (tensor.sizes[d] == 0) return {0, 0};
    (tensor.strides[d] < 0 ? low : high) += (tensor.sizes[d] - 1) * tensor.strides[d];
  }
  const uintptr_t at = reinterpret_cast<uintptr_t>(tensor.data);
  return {at + low * tensor.element_size(), at + high * tensor.element_size()};
}

// Dimensions of more than one entry, by rising strides.
inline int by_stride(const TensorRef& tensor, int* order) {
  int count = 0;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.sizes[d] == 1) continue;
    int at = count++;
    for (; at > 0 && tensor.strides[order[at - 1]] > tensor.strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  return count;
}

// Whether two elements may share memory: where they do not, each dimension steps over all that faster ones reach.
inline bool overlaps_itself(const TensorRef& tensor) {
  if (tensor.numel() < 2) return false;
  int order[kMostDims];
  const int count = by_stride(tensor, order);
  int64_t reach = 0;
  for (int i = 0; i < count; ++i) {
    if (tensor.strides[order[i]] <= reach) return true;
    reach += (tensor.sizes[order[i]] - 1) * tensor.strides[order[i]];
  }
  return false;
}

// Without gaps, in any order of its dimensions.
inline bool dense(const TensorRef& tensor) {
  int order[kMostDims];
  if (tensor.numel() == 0) return true;
  const int count = by_stride(tensor, order);
  int64_t expected = 1;
  for (int i = 0; i < count; ++i) {
    if (tensor.strides[order[i]] != expected) return false;
    expected *= tensor.sizes[order[i]];
  }
  return true;
}

// Whether a way is so many steps along each of these dimensions, forth or back, fewer than it has entries. By rising
// strides, of which each steps over all that faster ones reach: so two numbers of steps come close enough.
inline bool in_steps(const TensorRef& tensor, const int* order, int count, int64_t way) {
  if (count == 0) return way == 0;
  const int64_t size = tensor.sizes[order[count - 1]], stride = tensor.strides[order[count - 1]];
  const int64_t steps = way / stride, rest = way - steps * stride;
  return (steps < size && in_steps(tensor, order, count - 1, rest)) ||
         (steps + 1 < size && in_steps(tensor, order, count - 1, stride - rest));
}

// Whether elements of one are elements of the other, except each with itself; a does not overlap itself. False also
// where nobody can tell cheaply, as in torch: views of one tensor, of other strides, may lie between each other.
inline bool overlap(const TensorRef& a, const TensorRef& b, bool same_is_fine) {
  const Range of_a = range_of(a), of_b = range_of(b);
  if (of_a.low >= of_b.high || of_b.low >= of_a.high) return false;
  if (a.data == b.data && a.type == b.type && a.same_sizes(b) && a.same_strides(b)) return !same_is_fine;
  if (dense(a) && dense(b)) return true;
  if (a.data == b.data) return true;  // the first elements do
  if (a.type != b.type || !a.same_sizes(b) || !a.same_strides(b)) return false;
  int64_t way = static_cast<int64_t>(reinterpret_cast<uintptr_t>(b.data) - reinterpret_cast<uintptr_t>(a.data));
  if (way % a.element_size() != 0) return true;
  int order[kMostDims];
  return in_steps(a, order, by_stride(a, order), llabs(way / a.element_size()));
}

}  // namespace pyfold

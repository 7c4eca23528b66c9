#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "core/view.h"

// From tensors to the plain structs that kernels take. The Python layer has already told its user what was wrong with
// an argument; the checks here only keep a direct call of the raw op inside its memory.
namespace pyfold::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "pyfold: ", name, " must be float32, float64, bfloat16 or float16");
  }
}

// Collects the operands of one call, all shaped [rows, ...] like the first.
class Operands {
 public:
  Operands(const Tensor& like, Geometry& geometry) : geometry_(geometry), sizes_(like.sizes()), like_(like) {
    STD_TORCH_CHECK(like.dim() >= 1, "pyfold: the tensor needs a batch dimension");
    STD_TORCH_CHECK(like.dim() - 1 <= kMaxDims, "pyfold: at most ", kMaxDims, " dimensions after the batch");
    geometry_.rows = sizes_[0];
    geometry_.ndim = static_cast<int>(like.dim() - 1);
    for (int d = 0; d < geometry_.ndim; ++d) {
      geometry_.size[d] = sizes_[d + 1];
      geometry_.numel *= sizes_[d + 1];
    }
  }

  void check_device(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.get_device_index() == like_.get_device_index() && tensor.is_cpu() == like_.is_cpu(),
                    "pyfold: ", name, " is on another device");
  }

  void add(View& view, const Tensor& tensor, const char* name) {
    check_device(tensor, name);
    STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(sizes_.size()), "pyfold: ", name, " has another shape");
    for (size_t d = 0; d < sizes_.size(); ++d) {
      STD_TORCH_CHECK(tensor.size(d) == sizes_[d], "pyfold: ", name, " has another shape");
    }
    view.data = tensor.data_ptr();
    view.dtype = dtype_of(tensor, name);
    STD_TORCH_CHECK((view.dtype == DType::kFloat64) == (dtype_of(like_, name) == DType::kFloat64), "pyfold: ", name,
                    " mixes float64 with another dtype");
    const auto strides = tensor.strides();
    view.row_stride = strides[0];
    for (int d = 0; d < geometry_.ndim; ++d) view.stride[d] = strides[d + 1];
    views_.push_back(&view);
  }

  void add(View& view, const std::optional<Tensor>& tensor, const char* name) {
    if (tensor.has_value()) add(view, *tensor, name);
  }

  // The window of the sample that the rows are; without one, the rows are whole samples.
  void window(Window& window, const std::vector<int64_t>& offset, const std::vector<int64_t>& global_shape) {
    const size_t ndim = static_cast<size_t>(geometry_.ndim);
    const bool whole = global_shape.empty() && offset.empty();
    STD_TORCH_CHECK(whole || (offset.size() == ndim && global_shape.size() == ndim),
                    "pyfold: offset and global_shape need one entry for each dimension after the batch");
    int64_t stride = 1;
    for (int d = geometry_.ndim - 1; d >= 0; --d) {
      window.stride[d] = stride;
      if (whole) {
        stride *= geometry_.size[d];
        continue;
      }
      STD_TORCH_CHECK(offset[d] >= 0 && offset[d] + geometry_.size[d] <= global_shape[d],
                      "pyfold: the window leaves global_shape");
      window.base += offset[d] * stride;
      stride *= global_shape[d];
    }
    window_ = &window;
  }

  // Once every operand and the window are known: merges the dimensions that all of them walk as one.
  void finish() { collapse(geometry_, views_.data(), static_cast<int>(views_.size()), *window_); }

 private:
  Geometry& geometry_;
  torch::headeronly::IntHeaderOnlyArrayRef sizes_;
  const Tensor& like_;
  std::vector<View*> views_;
  Window* window_ = nullptr;
};

}  // namespace pyfold::ops

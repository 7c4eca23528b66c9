#pragma once

#include <string>
#include <vector>

#include "folds/layout.h"
#include "torch/diffusion.h"

// The arguments of the fold ops, from tensors: the same for every device.
namespace pyfold::ops {

inline FoldKind fold_kind(const std::string& name) {
  if (name == "abs") return FoldKind::kAbs;
  if (name == "maxmin") return FoldKind::kMaxMin;
  STD_TORCH_CHECK(name == "householder", "pyfold: no fold is named ", name);
  return FoldKind::kHouseholder;
}

// A dense tensor, whatever the order of its dimensions in memory, as [outer, channels, inner] in memory order.
inline FoldLayout fold_layout(const Tensor& x, int components, int64_t dim, const std::string& pairing,
                              int64_t groups) {
  FoldLayout layout;
  layout.components = components;
  layout.halves = pairing == "halves";
  layout.groups = groups;
  std::vector<int64_t> order(x.dim());
  const char* wrong = pyfold::fold_layout(layout, x.dim(), x.sizes().data(), x.strides().data(), dim, order.data());
  STD_TORCH_CHECK(wrong == nullptr, "pyfold: ", wrong);
  return layout;
}

inline size_t bytes_of(const FoldLayout& layout, DType dtype) {
  return static_cast<size_t>(layout.outer * layout.channels * layout.inner * size_of(dtype));
}
inline int64_t bit_bytes(const FoldLayout& layout) { return layout.groups * layout.bytes_per_group(); }

inline FoldArgs fold_args(const Tensor& in, const std::string& kind, int64_t dim, const std::string& pairing,
                          double gain, int64_t groups) {
  FoldArgs args;
  args.kind = fold_kind(kind);
  args.layout = fold_layout(in, args.kind == FoldKind::kAbs ? 1 : 2, dim, pairing, groups);
  args.dtype = dtype_of(in, "x");
  args.in = in.const_data_ptr();
  args.gain = gain;
  return args;
}

// One value of the accumulation type for each channel or line.
inline const void* fold_parameter(const Tensor& in, const std::optional<Tensor>& value, int64_t count,
                                  const char* name) {
  if (!value.has_value()) return nullptr;
  STD_TORCH_CHECK(value->scalar_type() == accumulation_type(in) && value->is_contiguous() && value->numel() == count &&
                      value->is_cpu() == in.is_cpu() && value->get_device_index() == in.get_device_index(),
                  "pyfold: ", name, " must hold ", count, " values of the accumulation type on the tensor's device");
  return value->const_data_ptr();
}

inline void fold_bits(FoldArgs& args, const Tensor& bits, const Tensor& clamped) {
  STD_TORCH_CHECK(
      bits.scalar_type() == ScalarType::Byte && bits.is_contiguous() && bits.numel() == bit_bytes(args.layout),
      "pyfold: bits do not belong to a tensor of this shape");
  args.bits = static_cast<uint8_t*>(bits.data_ptr());
  if (clamped.numel() == 0) return;
  STD_TORCH_CHECK(clamped.scalar_type() == ScalarType::Byte && clamped.is_contiguous() &&
                      clamped.numel() == args.layout.components * bit_bytes(args.layout),
                  "pyfold: clamped bits do not belong to a tensor of this shape");
  args.clamped = static_cast<uint8_t*>(clamped.data_ptr());
}

inline Tensor new_bits(const Tensor& like, const FoldLayout& layout, int64_t planes) {
  return torch::stable::new_empty(like, {layout.groups, planes * layout.bytes_per_group()}, ScalarType::Byte);
}

// What each op does but for the launch; a device's file gives launch(args, x) for each.
template <class Launch>
std::tuple<Tensor, Tensor, Tensor> fold_forward(const Tensor& x, const std::optional<Tensor>& bias,
                                                const std::optional<Tensor>& angle, const std::string& kind,
                                                int64_t dim, const std::string& pairing, double gain, double clamp,
                                                int64_t groups, bool remember, Launch&& launch) {
  FoldArgs args = fold_args(x, kind, dim, pairing, gain, groups);
  args.bias = fold_parameter(x, bias, args.layout.channels, "bias");
  args.angle = fold_parameter(x, angle, args.layout.lines(), "angle");
  args.clamp = clamp;
  Tensor y = torch::stable::empty_like(x);
  Tensor bits = new_bits(x, args.layout, remember ? 1 : 0);
  Tensor clamped = new_bits(x, args.layout, remember && clamp > 0 ? args.layout.components : 0);
  args.out = y.mutable_data_ptr();
  if (remember) fold_bits(args, bits, clamped);
  launch(args, x);
  return {y, bits, clamped};
}

template <class Launch>
Tensor fold_backward(const Tensor& grad, const Tensor& bits, const Tensor& clamped, const std::optional<Tensor>& angle,
                     const std::string& kind, int64_t dim, const std::string& pairing, double gain, int64_t groups,
                     bool transpose, Launch&& launch) {
  FoldArgs args = fold_args(grad, kind, dim, pairing, gain, groups);
  args.angle = fold_parameter(grad, angle, args.layout.lines(), "angle");
  args.transpose = transpose;
  fold_bits(args, bits, clamped);
  Tensor out = torch::stable::empty_like(grad);
  args.out = out.mutable_data_ptr();
  launch(args, grad);
  return out;
}

template <class Launch>
Tensor fold_rotate(const Tensor& value, const Tensor& bits, const Tensor& weight, int64_t dim,
                   const std::string& pairing, int64_t groups, Launch&& launch) {
  FoldArgs args = fold_args(value, "householder", dim, pairing, 1.0, groups);
  args.weight = fold_parameter(value, weight, args.layout.lines(), "weight");
  fold_bits(args, bits, new_bits(value, args.layout, 0));
  Tensor out = torch::stable::empty_like(value);
  args.out = out.mutable_data_ptr();
  launch(args, value);
  return out;
}

inline FoldArgs fold_angle_grad_args(const Tensor& grad, const Tensor& output, const Tensor& bits, int64_t dim,
                                     const std::string& pairing, int64_t groups) {
  FoldArgs args = fold_args(grad, "householder", dim, pairing, 1.0, groups);
  STD_TORCH_CHECK(output.scalar_type() == grad.scalar_type() && output.dim() == grad.dim(),
                  "pyfold: grad and output differ in dtype or shape");
  for (int64_t d = 0; d < grad.dim(); ++d) {
    STD_TORCH_CHECK(grad.size(d) == output.size(d) && (grad.size(d) == 1 || grad.stride(d) == output.stride(d)),
                    "pyfold: grad and output differ in shape or layout");
  }
  args.other = output.const_data_ptr();
  fold_bits(args, bits, new_bits(grad, args.layout, 0));
  return args;
}

}  // namespace pyfold::ops

#pragma once

#include "folds/program.h"
#include "torch/folds.h"

// The arguments of the sequence ops, from tensors: the same for every device.
namespace pyfold::ops {

inline SequenceMode sequence_mode(const std::string& name) {
  if (name == "tangent") return SequenceMode::kTangent;
  if (name == "adjoint") return SequenceMode::kAdjoint;
  STD_TORCH_CHECK(name == "inverse", "pyfold: no mode is named ", name);
  return SequenceMode::kInverse;
}

// Copies the program and returns the rows that a unit ends with.
inline int sequence_program(SequenceArgs& args, const std::vector<int64_t>& program,
                            const std::vector<double>& constants, const std::optional<Tensor>& parameters, int rows) {
  const char* wrong = pyfold::sequence_program(args, program.data(), static_cast<int64_t>(program.size()),
                                               constants.data(), static_cast<int64_t>(constants.size()),
                                               parameters.has_value() ? parameters->numel() : 0, rows);
  STD_TORCH_CHECK(wrong == nullptr, "pyfold: ", wrong);
  return rows;
}

inline void same_order(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.dim() == b.dim() && a.is_cpu() == b.is_cpu() &&
                      a.get_device_index() == b.get_device_index(),
                  "pyfold: input and out differ in dtype, device or dimensions");
  for (int64_t d = 0; d < a.dim(); ++d) {
    STD_TORCH_CHECK(a.size(d) == b.size(d) && (a.size(d) == 1 || a.stride(d) == b.stride(d)),
                    "pyfold: input and out differ in shape or memory order");
  }
}

// in is the narrow end of the program unless reversed.
inline void sequence_layouts(SequenceArgs& args, const Tensor& in, const Tensor& out, int rows, int wide_rows,
                             bool reversed, int64_t dim, const std::string& pairing, int64_t groups) {
  const Tensor& narrow = reversed ? out : in;
  const Tensor& wide = reversed ? in : out;
  const FoldLayout narrow_layout = fold_layout(narrow, rows, dim, pairing, groups);
  FoldLayout wide_layout = narrow_layout;
  if (wide_rows == rows) {
    same_order(in, out);
  } else {
    wide_layout = fold_layout(wide, wide_rows, dim, "halves", groups);
    STD_TORCH_CHECK(wide_layout.outer == narrow_layout.outer && wide_layout.inner == narrow_layout.inner &&
                        wide_layout.channels == 2 * narrow_layout.channels &&
                        wide.scalar_type() == narrow.scalar_type() && wide.is_cpu() == narrow.is_cpu() &&
                        wide.get_device_index() == narrow.get_device_index(),
                    "pyfold: crelu must double the channels and keep the memory order");
  }
  args.in_layout = reversed ? wide_layout : narrow_layout;
  args.out_layout = reversed ? narrow_layout : wide_layout;
}

inline void sequence_bits(SequenceArgs& args, const Tensor& bits, const Tensor& like) {
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_contiguous() &&
                      bits.numel() == args.planes * bit_bytes(args.in_layout) && bits.is_cpu() == like.is_cpu() &&
                      bits.get_device_index() == like.get_device_index(),
                  "pyfold: bits do not belong to this program and a tensor of this shape");
  args.bits = static_cast<uint8_t*>(bits.data_ptr());
}

inline const void* sequence_parameters(const Tensor& like, const std::optional<Tensor>& parameters) {
  return fold_parameter(like, parameters, parameters.has_value() ? parameters->numel() : 0, "parameters");
}

inline SequenceArgs sequence_args(const Tensor& x, const std::optional<Tensor>& bias,
                                  const std::optional<Tensor>& parameters, const std::vector<int64_t>& program,
                                  const std::vector<double>& constants, int64_t rows, int64_t dim,
                                  const std::string& pairing, int64_t groups, const Tensor& out,
                                  const std::optional<Tensor>& bits) {
  SequenceArgs args;
  args.dtype = dtype_of(x, "x");
  const int wide = sequence_program(args, program, constants, parameters, static_cast<int>(rows));
  sequence_layouts(args, x, out, static_cast<int>(rows), wide, false, dim, pairing, groups);
  args.in = x.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.bias = fold_parameter(x, bias, args.in_layout.channels, "bias");
  args.parameters = sequence_parameters(x, parameters);
  if (bits.has_value()) sequence_bits(args, *bits, x);
  return args;
}

inline SequenceArgs sequence_apply_args(const Tensor& value, const Tensor& bits,
                                        const std::optional<Tensor>& parameters, const std::vector<int64_t>& program,
                                        const std::vector<double>& constants, int64_t rows, int64_t dim,
                                        const std::string& pairing, int64_t groups, const std::string& mode,
                                        const Tensor& out) {
  SequenceArgs args;
  args.dtype = dtype_of(value, "value");
  args.mode = sequence_mode(mode);
  const int wide = sequence_program(args, program, constants, parameters, static_cast<int>(rows));
  sequence_layouts(args, value, out, static_cast<int>(rows), wide, args.mode != SequenceMode::kTangent, dim, pairing,
                   groups);
  args.in = value.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.parameters = sequence_parameters(value, parameters);
  sequence_bits(args, bits, value);
  return args;
}

}  // namespace pyfold::ops

#pragma once

#include "folds/sequence.h"
#include "torch/folds.h"

// The arguments of the sequence ops, from tensors: the same for every device.
namespace pyfold::ops {

// Constants, rows and planes that an instruction may touch, for units of so many rows.
struct SequenceReach {
  int constants, planes;
  bool pair;  // of rows i and j
};

inline SequenceReach sequence_reach(FoldOp op, int rows, bool shifts) {
  switch (op) {
    case FoldOp::kMirror:
    case FoldOp::kLeaky:
    case FoldOp::kBox:
      return {1, 1, false};
    case FoldOp::kBoxSides:
      return {1, 2, false};
    case FoldOp::kTri:
      return {2, 1, false};
    case FoldOp::kTriCell:
      return {2, kCellPlanes, false};
    case FoldOp::kSwap:
      return {0, 1, true};
    case FoldOp::kLine:
      return {2, 1, true};
    case FoldOp::kPlane:
      return {rows + 1, 1, false};
    case FoldOp::kCrelu:
      return {0, 1, false};
    case FoldOp::kAffine:
      return {shifts ? rows + 1 : 1, 0, false};
    case FoldOp::kMatrix:
      return {2 * rows * rows + rows, 0, false};
    case FoldOp::kClamp:
      return {1, rows, false};
    case FoldOp::kSphere:
      return {2, 2, false};
    case FoldOp::kBall:
      return {1, 1, false};
  }
  STD_TORCH_CHECK(false, "pyfold: the program has an unknown instruction");
}

inline SequenceMode sequence_mode(const std::string& name) {
  if (name == "tangent") return SequenceMode::kTangent;
  if (name == "adjoint") return SequenceMode::kAdjoint;
  STD_TORCH_CHECK(name == "inverse", "pyfold: no mode is named ", name);
  return SequenceMode::kInverse;
}

// Copies the program, checks that it stays inside its memory, and returns the rows that a unit ends with.
inline int sequence_program(SequenceArgs& args, const std::vector<int64_t>& program,
                            const std::vector<double>& constants, const std::optional<Tensor>& parameters, int rows) {
  STD_TORCH_CHECK(program.size() % 5 == 0 && program.size() / 5 <= kMaxInstructions, "pyfold: a program has at most ",
                  kMaxInstructions, " instructions of 5 numbers");
  STD_TORCH_CHECK(constants.size() <= kMaxConstants, "pyfold: a program has at most ", kMaxConstants, " constants");
  STD_TORCH_CHECK(rows >= 1 && rows <= kMaxRows, "pyfold: a unit has 1 to ", kMaxRows, " rows");
  const int64_t parameter_count = parameters.has_value() ? parameters->numel() : 0;
  args.count = static_cast<int>(program.size() / 5);
  for (int k = 0; k < args.count; ++k) {
    const int64_t* from = program.data() + 5 * k;
    for (int f = 0; f < 5; ++f) STD_TORCH_CHECK(from[f] >= 0 && from[f] <= INT16_MAX, "pyfold: bad instruction");
    FoldInstruction& to = args.instructions[k];
    to = {static_cast<int16_t>(from[0]), static_cast<int16_t>(from[1]), static_cast<int16_t>(from[2]),
          static_cast<int16_t>(from[3]), static_cast<int16_t>(from[4])};
    const FoldOp op = static_cast<FoldOp>(to.op);
    const SequenceReach reach = sequence_reach(op, rows, to.j != 0);
    STD_TORCH_CHECK(to.i < rows && (!reach.pair || (to.j < rows && to.i != to.j)),
                    "pyfold: an instruction leaves the rows of its unit");
    const bool of_parameters = to.constant >= kParameters;
    const int64_t first = of_parameters ? to.constant - kParameters : to.constant;
    const int64_t available = of_parameters ? parameter_count : static_cast<int64_t>(constants.size());
    STD_TORCH_CHECK(reach.constants == 0 || first + reach.constants <= available,
                    "pyfold: an instruction leaves the constants of its program");
    STD_TORCH_CHECK(op != FoldOp::kCrelu || (k == 0 && rows == 1), "pyfold: crelu takes one row, and comes first");
    STD_TORCH_CHECK(op != FoldOp::kMatrix || rows <= kMaxMatrixRows, "pyfold: a matrix has at most ", kMaxMatrixRows,
                    " rows");
    args.planes = std::max(args.planes, to.plane + reach.planes);
    if (op == FoldOp::kCrelu) rows = 2;
  }
  std::copy(constants.begin(), constants.end(), args.constants);
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

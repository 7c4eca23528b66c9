#include <torch/csrc/stable/library.h>

// Every op of pyfold. Tables have the columns of csrc/diffusion/{noising,affine_step}.h; offset and global_shape are
// empty, or say which window of each sample the tensors hold. The Python layer (pyfold/ops) is the documented way to
// call these.
STABLE_TORCH_LIBRARY(pyfold, m) {
  m.def("randn(Tensor seeds, int stream, int step, int[] offset, int[] global_shape, Tensor(a!) out) -> ()");
  m.def(
      "add_noise(Tensor x0, Tensor table, Tensor? index, Tensor seeds, int stream, int step, int[] offset, "
      "int[] global_shape, Tensor(a!) out, Tensor(b!)? target) -> ()");
  m.def(
      "denoising_loss(Tensor prediction, Tensor x0, Tensor table, Tensor? index, Tensor seeds, int stream, int step, "
      "int[] offset, int[] global_shape) -> Tensor");
  m.def(
      "denoising_residual_dot(Tensor cotangent, Tensor prediction, Tensor x0, Tensor table, Tensor? index, "
      "Tensor seeds, int stream, int step, int[] offset, int[] global_shape) -> Tensor");
  m.def(
      "denoising_residual_scale(Tensor scale, Tensor prediction, Tensor x0, Tensor table, Tensor? index, "
      "Tensor seeds, int stream, int step, int[] offset, int[] global_shape) -> Tensor");
  m.def(
      "affine_step(Tensor x, Tensor[] models, Tensor? base, Tensor[] history, Tensor table, Tensor? index, "
      "Tensor? seeds, int stream, int[] offset, int[] global_shape, Tensor(a!) out, Tensor(b!)? history_out, "
      "Tensor(c!)? next_input, Tensor(d!)? x0_out) -> ()");
  // clamp 0 is none. bits: [groups, bytes]; clamped: the same for each value of a unit, and empty without clamp; both
  // are empty unless they are to be remembered.
  m.def(
      "fold(Tensor x, Tensor? bias, Tensor? angle, str kind, int dim, str pairing, float gain, float clamp, int "
      "groups, bool remember) -> (Tensor, Tensor, Tensor)");
  m.def(
      "fold_backward(Tensor grad, Tensor bits, Tensor clamped, Tensor? angle, str kind, int dim, str pairing, "
      "float gain, int groups, bool transpose) -> Tensor");
  m.def("fold_angle_grad(Tensor grad, Tensor output, Tensor bits, int dim, str pairing, int groups) -> Tensor");
  m.def("fold_rotate(Tensor value, Tensor bits, Tensor weight, int dim, str pairing, int groups) -> Tensor");
  // program: op, i, j, constant, plane of each instruction (csrc/folds/sequence.h); direction:
  // tangent, adjoint or inverse. The narrower of in and out has rows channels a unit, bits [groups, planes * bytes].
  m.def(
      "fold_sequence(Tensor x, Tensor? bias, Tensor? parameters, int[] program, float[] constants, int rows, int dim, "
      "str pairing, int groups, Tensor(a!) out, Tensor(b!)? bits) -> ()");
  m.def(
      "fold_sequence_apply(Tensor value, Tensor bits, Tensor? parameters, int[] program, float[] constants, int rows, "
      "int dim, str pairing, int groups, str direction, Tensor(a!) out) -> ()");
}

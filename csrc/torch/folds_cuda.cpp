#include "cuda/folds.h"

#include "torch/cuda_stream.h"
#include "torch/folds.h"

namespace pyfold::ops {
namespace {

using FoldLauncher = cudaError_t (*)(const FoldArgs&, cudaStream_t);

auto launcher(FoldLauncher launch) {
  return [launch](FoldArgs& args, const Tensor& tensor) {
    const CudaContext context(tensor);
    check_launch(launch(args, context.stream()));
  };
}

std::tuple<Tensor, Tensor, Tensor> fold_cuda(const Tensor& x, const std::optional<Tensor>& bias,
                                             const std::optional<Tensor>& angle, const std::string& kind, int64_t dim,
                                             const std::string& pairing, double gain, double clamp, int64_t groups,
                                             bool remember) {
  return fold_forward(x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember, launcher(cuda::fold_forward));
}

Tensor fold_backward_cuda(const Tensor& grad, const Tensor& bits, const Tensor& clamped,
                          const std::optional<Tensor>& angle, const std::string& kind, int64_t dim,
                          const std::string& pairing, double gain, int64_t groups, bool transpose) {
  return fold_backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose,
                       launcher(cuda::fold_backward));
}

Tensor fold_rotate_cuda(const Tensor& value, const Tensor& bits, const Tensor& weight, int64_t dim,
                        const std::string& pairing, int64_t groups) {
  return fold_rotate(value, bits, weight, dim, pairing, groups, launcher(cuda::fold_rotate));
}

Tensor fold_angle_grad_cuda(const Tensor& grad, const Tensor& output, const Tensor& bits, int64_t dim,
                            const std::string& pairing, int64_t groups) {
  const FoldArgs args = fold_angle_grad_args(grad, output, bits, dim, pairing, groups);
  const CudaContext context(grad);
  const int64_t lines = args.layout.lines();
  Tensor partial = torch::stable::new_empty(grad, {lines * cuda::fold_partials(args.layout)}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(grad, {lines}, accumulation_type(grad));
  check_launch(cuda::fold_angle_grad(args, static_cast<double*>(partial.mutable_data_ptr()), result.mutable_data_ptr(),
                                     context.stream()));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CUDA, m) {
  m.impl("fold", TORCH_BOX(&fold_cuda));
  m.impl("fold_backward", TORCH_BOX(&fold_backward_cuda));
  m.impl("fold_rotate", TORCH_BOX(&fold_rotate_cuda));
  m.impl("fold_angle_grad", TORCH_BOX(&fold_angle_grad_cuda));
}

}  // namespace pyfold::ops

#include "cuda/diffusion.h"

#include "torch/cuda_stream.h"
#include "torch/diffusion.h"

namespace pyfold::ops {
namespace {

void randn_cuda(const Tensor& seeds, int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape,
                const Tensor& out) {
  const RandnArgs args = randn_args(seeds, stream, step, offset, global_shape, out);
  const CudaContext context(out);
  check_launch(cuda::randn(args, context.stream()));
}

void add_noise_cuda(const Tensor& x0, const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
                    int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape, const Tensor& out,
                    const std::optional<Tensor>& target) {
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.operands.add(call.args.out, out, "out");
  call.operands.add(call.args.target, target, "target");
  const CudaContext context(x0);
  check_launch(cuda::add_noise(call.finish(offset, global_shape), context.stream()));
}

using SumLauncher = cudaError_t (*)(const NoisingArgs&, double, double*, void*, cudaStream_t);

Tensor row_sums(const NoisingArgs& args, SumLauncher launch, const Tensor& x0, double factor) {
  const CudaContext context(x0);
  const int64_t partials = args.geometry.rows * cuda::partials_per_row(args.geometry);
  Tensor partial = torch::stable::new_empty(x0, {partials}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(x0, {args.geometry.rows}, accumulation_type(x0));
  check_launch(launch(args, factor, static_cast<double*>(partial.mutable_data_ptr()), result.mutable_data_ptr(),
                      context.stream()));
  return result;
}

Tensor denoising_loss_cuda(const Tensor& prediction, const Tensor& x0, const Tensor& table,
                           const std::optional<Tensor>& index, const Tensor& seeds, int64_t stream, int64_t step,
                           const Ints& offset, const Ints& global_shape) {
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.operands.add(call.args.prediction, prediction, "prediction");
  const NoisingArgs& args = call.finish(offset, global_shape);
  return row_sums(args, cuda::residual_square, x0, 1.0 / static_cast<double>(args.geometry.numel));
}

Tensor denoising_residual_dot_cuda(const Tensor& cotangent, const Tensor& prediction, const Tensor& x0,
                                   const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
                                   int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape) {
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.operands.add(call.args.prediction, prediction, "prediction");
  call.operands.add(call.args.cotangent, cotangent, "cotangent");
  return row_sums(call.finish(offset, global_shape), cuda::residual_dot, x0, 1.0);
}

Tensor denoising_residual_scale_cuda(const Tensor& scale, const Tensor& prediction, const Tensor& x0,
                                     const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
                                     int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape) {
  Tensor out = torch::stable::empty_like(prediction);
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.scale(scale, x0);
  call.operands.add(call.args.prediction, prediction, "prediction");
  call.operands.add(call.args.out, out, "out");
  const CudaContext context(x0);
  check_launch(cuda::residual_scale(call.finish(offset, global_shape), context.stream()));
  return out;
}

void affine_step_cuda(const Tensor& x, const std::vector<Tensor>& models, const std::optional<Tensor>& base,
                      const std::vector<Tensor>& history, const Tensor& table, const std::optional<Tensor>& index,
                      const std::optional<Tensor>& seeds, int64_t stream, const Ints& offset, const Ints& global_shape,
                      const Tensor& out, const std::optional<Tensor>& history_out,
                      const std::optional<Tensor>& next_input, const std::optional<Tensor>& x0_out) {
  const AffineStepArgs args = affine_step_args(x, models, base, history, table, index, seeds, stream, offset,
                                               global_shape, out, history_out, next_input, x0_out);
  const CudaContext context(x);
  check_launch(cuda::affine_step(args, context.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CUDA, m) {
  m.impl("randn", TORCH_BOX(&randn_cuda));
  m.impl("add_noise", TORCH_BOX(&add_noise_cuda));
  m.impl("denoising_loss", TORCH_BOX(&denoising_loss_cuda));
  m.impl("denoising_residual_dot", TORCH_BOX(&denoising_residual_dot_cuda));
  m.impl("denoising_residual_scale", TORCH_BOX(&denoising_residual_scale_cuda));
  m.impl("affine_step", TORCH_BOX(&affine_step_cuda));
}

}  // namespace pyfold::ops

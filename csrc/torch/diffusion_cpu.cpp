#include <vector>

#include "cpu/diffusion.h"
#include "cpu/huge_pages.h"
#include "cpu/launch.h"
#include "torch/diffusion.h"

namespace pyfold::ops {
namespace {

template <class Body>
void parallel_tasks(const Geometry& geometry, bool noisy, const Body& body) {
  const int64_t tasks = cpu::task_count(geometry);
  if (tasks == 0) return;
  if (cpu::for_one_thread(geometry, noisy)) return body(0, tasks);
  torch::stable::parallel_for(0, tasks, cpu::task_grain(geometry, noisy), body);
}

void launch(const Geometry& geometry, bool noisy, cpu::TaskBody* body, const void* context) {
  parallel_tasks(geometry, noisy, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

[[maybe_unused]] const bool known = (cpu::launchers().tasks = launch, true);

void randn_cpu(const Tensor& seeds, int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape,
               const Tensor& out) {
  const RandnArgs args = randn_args(seeds, stream, step, offset, global_shape, out);
  cpu::prefer_huge_pages(args.geometry, {&args.out});
  const auto& kernels = cpu::diffusion_kernels();
  parallel_tasks(args.geometry, true, [&](int64_t begin, int64_t end) { kernels.randn(args, begin, end); });
}

void add_noise_cpu(const Tensor& x0, const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
                   int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape, const Tensor& out,
                   const std::optional<Tensor>& target) {
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.operands.add(call.args.out, out, "out");
  call.operands.add(call.args.target, target, "target");
  const NoisingArgs& args = call.finish(offset, global_shape);
  cpu::prefer_huge_pages(args.geometry, {&args.out, &args.target});
  const auto& kernels = cpu::diffusion_kernels();
  parallel_tasks(args.geometry, true, [&](int64_t begin, int64_t end) { kernels.add_noise(args, begin, end); });
}

using SumKernel = void (*)(const NoisingArgs&, double*, int64_t, int64_t);

Tensor row_sums(const NoisingArgs& args, SumKernel kernel, const Tensor& x0, double factor) {
  std::vector<double> sums(cpu::task_count(args.geometry));
  parallel_tasks(args.geometry, cpu::draws_noise(args),
                 [&](int64_t begin, int64_t end) { kernel(args, sums.data(), begin, end); });
  const bool wide = accumulation_type(x0) == ScalarType::Double;
  Tensor result = torch::stable::new_empty(x0, {args.geometry.rows}, accumulation_type(x0));
  cpu::sum_rows(args.geometry, sums.data(), factor, wide, result.mutable_data_ptr());
  return result;
}

Tensor denoising_loss_cpu(const Tensor& prediction, const Tensor& x0, const Tensor& table,
                          const std::optional<Tensor>& index, const Tensor& seeds, int64_t stream, int64_t step,
                          const Ints& offset, const Ints& global_shape) {
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.operands.add(call.args.prediction, prediction, "prediction");
  const NoisingArgs& args = call.finish(offset, global_shape);
  return row_sums(args, cpu::diffusion_kernels().residual_square, x0, 1.0 / static_cast<double>(args.geometry.numel));
}

Tensor denoising_residual_dot_cpu(const Tensor& cotangent, const Tensor& prediction, const Tensor& x0,
                                  const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
                                  int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape) {
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.operands.add(call.args.prediction, prediction, "prediction");
  call.operands.add(call.args.cotangent, cotangent, "cotangent");
  const NoisingArgs& args = call.finish(offset, global_shape);
  return row_sums(args, cpu::diffusion_kernels().residual_dot, x0, 1.0);
}

Tensor denoising_residual_scale_cpu(const Tensor& scale, const Tensor& prediction, const Tensor& x0,
                                    const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
                                    int64_t stream, int64_t step, const Ints& offset, const Ints& global_shape) {
  Tensor out = torch::stable::empty_like(prediction);
  NoisingCall call(x0, table, index, seeds, stream, step);
  call.scale(scale, x0);
  call.operands.add(call.args.prediction, prediction, "prediction");
  call.operands.add(call.args.out, out, "out");
  const NoisingArgs& args = call.finish(offset, global_shape);
  cpu::prefer_huge_pages(args.geometry, {&args.out});
  const auto& kernels = cpu::diffusion_kernels();
  parallel_tasks(args.geometry, cpu::draws_noise(args),
                 [&](int64_t begin, int64_t end) { kernels.residual_scale(args, begin, end); });
  return out;
}

void affine_step_cpu(const Tensor& x, const std::vector<Tensor>& models, const std::optional<Tensor>& base,
                     const std::vector<Tensor>& history, const Tensor& table, const std::optional<Tensor>& index,
                     const std::optional<Tensor>& seeds, int64_t stream, const Ints& offset, const Ints& global_shape,
                     const Tensor& out, const std::optional<Tensor>& history_out,
                     const std::optional<Tensor>& next_input, const std::optional<Tensor>& x0_out) {
  const AffineStepArgs args = affine_step_args(x, models, base, history, table, index, seeds, stream, offset,
                                               global_shape, out, history_out, next_input, x0_out);
  cpu::prefer_huge_pages(args.geometry, {&args.out, &args.history_out, &args.next_input, &args.x0_out});
  const auto& kernels = cpu::diffusion_kernels();
  parallel_tasks(args.geometry, seeds.has_value(),
                 [&](int64_t begin, int64_t end) { kernels.affine_step(args, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CPU, m) {
  m.impl("randn", TORCH_BOX(&randn_cpu));
  m.impl("add_noise", TORCH_BOX(&add_noise_cpu));
  m.impl("denoising_loss", TORCH_BOX(&denoising_loss_cpu));
  m.impl("denoising_residual_dot", TORCH_BOX(&denoising_residual_dot_cpu));
  m.impl("denoising_residual_scale", TORCH_BOX(&denoising_residual_scale_cpu));
  m.impl("affine_step", TORCH_BOX(&affine_step_cpu));
}

}  // namespace pyfold::ops

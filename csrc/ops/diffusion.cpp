#include "cpu/launch.h"
#include "ops/parser.h"

// The ops on samples. Tables have the columns of csrc/diffusion/{noising,affine_step}.h; offset and global_shape are
// empty, or say which window of each sample the tensors hold.
namespace pyfold::ops {
namespace {

using Kernels = cpu::DiffusionKernels;

void randn(Parser& read, Call& call) {
  RandnArgs& args = call.begin<RandnArgs>();
  read.samples(args.geometry);
  read.view("out", args.out, Kind::kState, kWritten);
  read.noise(args.noise);
  read.finish_samples(args.noise.window);
}

void add_noise(Parser& read, Call& call) {
  NoisingArgs& args = call.begin<NoisingArgs>();
  read.samples(args.geometry);
  read.view("x0", args.x0);
  read.table(args.table, kNoisingColumns);
  read.noise(args.noise);
  read.view("out", args.out, Kind::kLower, kWritten);
  read.view("target", args.target, Kind::kLower, kWritten | kOptional);
  read.finish_samples(args.noise.window);
}

// What the loss and its derivatives share.
NoisingArgs& residual(Parser& read, Call& call) {
  NoisingArgs& args = call.begin<NoisingArgs>();
  read.samples(args.geometry);
  read.view("x0", args.x0);
  read.view("prediction", args.prediction, Kind::kLower);
  return args;
}

void noise_of_residual(Parser& read, NoisingArgs& args) {
  read.table(args.table, kNoisingColumns);
  read.noise(args.noise, kOptional);
}

void sums(Parser& read, Call& call, NoisingArgs& args) {
  read.finish_samples(args.noise.window);
  call.wide = read.state() == Element::kFloat64;
  read.result("per_sample", read.accumulation(), &call.sums, {args.geometry.rows});
}

void denoising_loss(Parser& read, Call& call) {
  NoisingArgs& args = residual(read, call);
  noise_of_residual(read, args);
  sums(read, call, args);
  call.factor = 1.0 / static_cast<double>(args.geometry.numel);
}

void denoising_residual_dot(Parser& read, Call& call) {
  NoisingArgs& args = residual(read, call);
  read.view("cotangent", args.cotangent, Kind::kLower);
  noise_of_residual(read, args);
  sums(read, call, args);
}

template <auto kernel>
void sum_cpu(Call& call) {
  cpu::launch_sums<kernel>(call.as<NoisingArgs>(), call.factor, call.wide, call.sums);
}

void denoising_residual_scale(Parser& read, Call& call) {
  NoisingArgs& args = residual(read, call);
  read.per_sample("scale", Kind::kAccumulation, 0, args.row_scale, nullptr);
  noise_of_residual(read, args);
  read.result_view("like", args.out, 1);
  read.finish_samples(args.noise.window, args.noise.seeds != nullptr);
}

void affine_step(Parser& read, Call& call) {
  AffineStepArgs& args = call.begin<AffineStepArgs>();
  read.samples(args.geometry);
  read.view("x", args.x);
  read.views("models", args.models, 1, kMaxModels, Kind::kLower);
  read.view("base", args.base, Kind::kState, kOptional);
  read.views("history", args.history, 0, kMaxHistory, Kind::kState);
  read.table(args.table, kStepColumns);
  read.noise(args.noise, kOptional);
  read.view("out", args.out, Kind::kState, kWritten);
  read.view("history_out", args.history_out, Kind::kState, kWritten | kOptional);
  read.view("next_input", args.next_input, Kind::kLower, kWritten | kOptional);
  read.view("x0_out", args.x0_out, Kind::kState, kWritten | kOptional);
  read.finish_samples(args.noise.window, args.noise.seeds != nullptr);
}

template <auto kernel, class Args>
void map_cpu(Call& call) {
  cpu::launch_map<kernel>(call.as<Args>(), {call.outputs, static_cast<size_t>(call.output_count)});
}

}  // namespace

const std::vector<Op>& diffusion_ops() {
  static const std::vector<Op> ops = {
      {"randn", randn, map_cpu<&Kernels::randn, RandnArgs>},
      {"add_noise", add_noise, map_cpu<&Kernels::add_noise, NoisingArgs>},
      {"denoising_loss", denoising_loss, sum_cpu<&Kernels::residual_square>},
      {"denoising_residual_dot", denoising_residual_dot, sum_cpu<&Kernels::residual_dot>},
      {"denoising_residual_scale", denoising_residual_scale, map_cpu<&Kernels::residual_scale, NoisingArgs>},
      {"affine_step", affine_step, map_cpu<&Kernels::affine_step, AffineStepArgs>},
  };
  return ops;
}

}  // namespace pyfold::ops

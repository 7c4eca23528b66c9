#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/diffusion.h"
#include "cuda/folds.h"
#include "cuda/sequence.h"
#include "torch/boxed.h"

// Defined by a CUDA build of torch alone. Weak, so that this library also loads beside a CPU build.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream) __attribute__((weak));

namespace pyfold::ops {
namespace {

template <class Args, cudaError_t (*launch)(const Args&, cudaStream_t)>
cudaError_t map(Call& call, cudaStream_t stream) {
  return launch(call.as<Args>(), stream);
}

template <cudaError_t (*launch)(const NoisingArgs&, double, double*, void*, cudaStream_t)>
cudaError_t sum(Call& call, cudaStream_t stream) {
  return launch(call.as<NoisingArgs>(), call.factor, static_cast<double*>(call.scratch), call.sums, stream);
}

cudaError_t angle_grad(Call& call, cudaStream_t stream) {
  return cuda::fold_angle_grad(call.as<FoldArgs>(), static_cast<double*>(call.scratch), call.sums, stream);
}

int64_t sample_partials(Call& call) {
  const Geometry& geometry = call.as<NoisingArgs>().geometry;
  return geometry.rows * cuda::partials_per_row(geometry);
}

int64_t line_partials(Call& call) {
  const FoldLayout& layout = call.as<FoldArgs>().layout;
  return layout.lines() * cuda::fold_partials(layout);
}

// In the order of all().
struct Kernel {
  const char* name;
  cudaError_t (*launch)(Call& call, cudaStream_t stream);
  int64_t (*scratch)(Call& call) = nullptr;  // float64 values for partial sums
};
constexpr Kernel kKernels[kOpCount] = {
    {"randn", map<RandnArgs, cuda::randn>},
    {"add_noise", map<NoisingArgs, cuda::add_noise>},
    {"denoising_loss", sum<cuda::residual_square>, sample_partials},
    {"denoising_residual_dot", sum<cuda::residual_dot>, sample_partials},
    {"denoising_residual_scale", map<NoisingArgs, cuda::residual_scale>},
    {"affine_step", map<AffineStepArgs, cuda::affine_step>},
    {"fold", map<FoldArgs, cuda::fold_forward>},
    {"fold_backward", map<FoldArgs, cuda::fold_backward>},
    {"fold_rotate", map<FoldArgs, cuda::fold_rotate>},
    {"fold_angle_grad", angle_grad, line_partials},
    {"fold_sequence", map<SequenceArgs, cuda::fold_sequence>},
    {"fold_sequence_apply", map<SequenceArgs, cuda::fold_sequence>},
};

const char* launch(size_t number, Call& call, void* stream) {
  const cudaError_t error = kKernels[number].launch(call, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

int64_t scratch(size_t number, Call& call) {
  return kKernels[number].scratch == nullptr ? 0 : kKernels[number].scratch(call);
}

// The tensor's device made current, and torch's current stream on it.
struct OnCuda {
  static void run(size_t number, Call& call, const Tensor& tensor) {
    const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
    STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr, "pyfold: this torch is a CPU build");
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                    "pyfold: no current CUDA stream");
    std::optional<Tensor> partial;
    if (const int64_t count = scratch(number, call); count > 0) {
      partial = torch::stable::new_empty(tensor, {count}, ScalarType::Double);
      call.scratch = partial->mutable_data_ptr();
    }
    const char* failed = launch(number, call, stream);
    STD_TORCH_CHECK(failed == nullptr, "pyfold: CUDA launch failed: ", failed);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CUDA, m) {
  for (size_t i = 0; i < kOpCount; ++i)
    STD_TORCH_CHECK(all()[i].name == std::string(kKernels[i].name), "pyfold: order");
  register_all<OnCuda>(m);
  cuda_launch() = {launch, scratch};
}

}  // namespace pyfold::ops

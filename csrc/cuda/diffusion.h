#pragma once

#include <cuda_runtime_api.h>

#include "diffusion/affine_step.h"
#include "diffusion/noising.h"
#include "diffusion/randn.h"

// One launch each, on the given stream. No torch, no allocation, no synchronisation.
namespace pyfold::cuda {

cudaError_t randn(const RandnArgs& args, cudaStream_t stream);
cudaError_t add_noise(const NoisingArgs& args, cudaStream_t stream);
cudaError_t residual_scale(const NoisingArgs& args, cudaStream_t stream);
cudaError_t affine_step(const AffineStepArgs& args, cudaStream_t stream);

// Sums over each row times factor, into float (double for float64 operands) result[rows]; two launches. partial holds
// rows * partials_per_row doubles.
int64_t partials_per_row(const Geometry& geometry);
cudaError_t residual_square(const NoisingArgs& args, double factor, double* partial, void* result, cudaStream_t stream);
cudaError_t residual_dot(const NoisingArgs& args, double factor, double* partial, void* result, cudaStream_t stream);

}  // namespace pyfold::cuda

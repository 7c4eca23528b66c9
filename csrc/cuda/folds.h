#pragma once

#include <cuda_runtime_api.h>

#include "folds/fold.h"

// One launch each, on the given stream. No torch, no allocation, no synchronisation.
namespace pyfold::cuda {

cudaError_t fold_forward(const FoldArgs& args, cudaStream_t stream);
cudaError_t fold_backward(const FoldArgs& args, cudaStream_t stream);
cudaError_t fold_rotate(const FoldArgs& args, cudaStream_t stream);

// Sums of each line, in two launches and a fixed order; partial holds lines * fold_partials doubles.
int64_t fold_partials(const FoldLayout& layout);
cudaError_t fold_angle_grad(const FoldArgs& args, double* partial, void* result, cudaStream_t stream);

}  // namespace pyfold::cuda

#pragma once

#include <cuda_runtime_api.h>

#include "folds/sequence.h"

// One launch on the given stream. No torch, no allocation, no synchronisation.
namespace pyfold::cuda {

cudaError_t fold_sequence(const SequenceArgs& args, cudaStream_t stream);

}  // namespace pyfold::cuda

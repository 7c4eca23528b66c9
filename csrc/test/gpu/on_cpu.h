#pragma once

#include <torch/csrc/stable/library.h>

// Included before csrc/torch's CUDA registrations and schemas: what they register for CUDA in the library pyfold
// becomes the CPU implementation of the library pyfold_gpu_test, so that torch.ops.pyfold_gpu_test runs the kernels on
// CPU tensors beside torch.ops.pyfold.

namespace pyfold::gpu {

constexpr const char* kLibrary = "pyfold_gpu_test";

}  // namespace pyfold::gpu

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m)                                                                                   \
  static void pyfold_gpu_schemas(torch::stable::detail::StableLibrary&);                                              \
  static const torch::stable::detail::StableTorchLibraryInit pyfold_gpu_schemas_init(                                 \
      torch::stable::detail::StableLibrary::Kind::DEF, &pyfold_gpu_schemas, pyfold::gpu::kLibrary, nullptr, __FILE__, \
      __LINE__);                                                                                                      \
  static void pyfold_gpu_schemas(torch::stable::detail::StableLibrary& m)

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m)                                                                      \
  static void pyfold_gpu_##key(torch::stable::detail::StableLibrary&);                                             \
  static const torch::stable::detail::StableTorchLibraryInit pyfold_gpu_##key##_init(                              \
      torch::stable::detail::StableLibrary::Kind::IMPL, &pyfold_gpu_##key, pyfold::gpu::kLibrary, "CPU", __FILE__, \
      __LINE__);                                                                                                   \
  static void pyfold_gpu_##key(torch::stable::detail::StableLibrary& m)

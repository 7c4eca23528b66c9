#pragma once

// Every function of csrc/core, csrc/diffusion and csrc/folds is host and device code with internal linkage:
// a copy of its own in each translation unit, so that code built for AVX-512 can never be picked by the
// linker for the baseline object.
#if defined(__CUDACC__)
#define PYFOLD_HD __host__ __device__ __forceinline__
#else
#define PYFOLD_HD inline __attribute__((always_inline))
#endif

// A loop over the few lanes of a GPU thread must unroll for them to stay in registers; a CPU's loops vectorise.
#if defined(__CUDA_ARCH__)
#define PYFOLD_UNROLL _Pragma("unroll")
#else
#define PYFOLD_UNROLL
#endif

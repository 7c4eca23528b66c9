#pragma once

#include <stdint.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "core/dtype.h"

// Runs of elements from and to memory with the dtype changed on the way. The compiler vectorises all but float16, which
// gets the conversion instructions where the tier has them; the results are the same bits either way.
namespace pyfold {
namespace {

template <class From, class A>
inline void load_run(const From* __restrict from, A* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<A>(widen(from[i]));
}

template <class A, class To>
inline void store_run(const A* __restrict from, To* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) narrow(from[i], to[i]);
}

#if defined(__F16C__)
inline void load_run(const Float16* __restrict from, float* __restrict to, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xFFFF, half));
  }
#endif
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  for (; i < count; ++i) to[i] = widen(from[i]);
}

inline void store_run(const float* __restrict from, Float16* __restrict to, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16) {
    const __m256i half = _mm512_maskz_cvtps_ph(0xFFFF, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), half);
  }
#endif
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  for (; i < count; ++i) narrow(from[i], to[i]);
}
#endif

// Calls body with a pointer of the element type that dtype names. Half types widen to float alone: a float64
// accumulation only ever meets float64 operands.
template <class A, class Body>
inline void with_type(DType dtype, void* data, Body&& body) {
  if constexpr (sizeof(A) == 8) {
    body(static_cast<double*>(data));
  } else {
    switch (dtype) {
      case DType::kBFloat16:
        return body(static_cast<BFloat16*>(data));
      case DType::kFloat16:
        return body(static_cast<Float16*>(data));
      default:
        return body(static_cast<float*>(data));
    }
  }
}

}  // namespace
}  // namespace pyfold

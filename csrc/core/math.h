#pragma once

#include <stdint.h>
#include <string.h>

#include "core/macros.h"

namespace pyfold {
namespace {

PYFOLD_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

PYFOLD_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// One rounding, on every device. Contraction is off everywhere, so a*b+c written out keeps its two roundings.
PYFOLD_HD float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// On a GPU from 2^-96 to 2^96, so that nobody asks where the value lies. Correctly rounded for every reciprocal root
// that is up to four units off (tried for all mantissas): a card's may be two.
PYFOLD_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
  float reciprocal;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
  float root = __fmul_rn(value, reciprocal);
  float half = __fmul_rn(reciprocal, 0.5f);
  const float error = __fmaf_rn(-root, half, 0.5f);
  root = __fmaf_rn(root, error, root);
  half = __fmaf_rn(half, error, half);
  return __fmaf_rn(__fmaf_rn(-root, root, value), half, root);
#else
  return __builtin_sqrtf(value);
#endif
}

}  // namespace
}  // namespace pyfold

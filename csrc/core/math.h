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

PYFOLD_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return __builtin_sqrtf(value);
#endif
}

}  // namespace
}  // namespace pyfold

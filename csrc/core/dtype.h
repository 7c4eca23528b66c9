#pragma once

#include <stdint.h>

#include "core/macros.h"
#include "core/math.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pyfold {

enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace {

constexpr PYFOLD_HD int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Conversions round to nearest even and keep infinities and NaN.

PYFOLD_HD float widen(float value) { return value; }
PYFOLD_HD double widen(double value) { return value; }
PYFOLD_HD float widen(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

PYFOLD_HD float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // The exponent and mantissa as a float scaled by 2^112: normals and subnormals alike; infinities and NaN afterwards.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFFu) << 13;
  const uint32_t scaled = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  return bits_to_float((magnitude >= 0x0F800000u ? special : scaled) | sign);
#endif
}

PYFOLD_HD void narrow(float value, float& out) { out = value; }
PYFOLD_HD void narrow(double value, double& out) { out = value; }

PYFOLD_HD void narrow(float value, BFloat16& out) {
#if defined(__CUDA_ARCH__)
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  out.bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
#endif
}

PYFOLD_HD void narrow(float value, Float16& out) {
#if defined(__CUDA_ARCH__)
  out.bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  // Below 2^-14 the result is subnormal: adding 1/2 makes the float adder round at the right bit.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477FF000u ? 0x7C00u : half;
  half = magnitude > 0x7F800000u ? 0x7E00u | ((magnitude >> 13) & 0x3FFu) : half;
  out.bits = static_cast<uint16_t>(half | sign);
#endif
}

}  // namespace
}  // namespace pyfold

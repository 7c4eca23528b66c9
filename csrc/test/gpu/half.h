#pragma once

#include <bit>
#include <cstdint>

namespace pyfold::gpu {

// The two 16-bit floating-point types as PTX's cvt has them: rounded to nearest, ties to even, one NaN. Written apart
// from csrc/core/dtype.h, which is under test.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float widened(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

inline BFloat16 to_bfloat16(float value) {
  if (value != value) return {0x7FFF};
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline float widened(Float16 value) { return static_cast<float>(std::bit_cast<_Float16>(value.bits)); }

inline Float16 to_float16(float value) {
  if (value != value) return {0x7FFF};
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(value))};
}

}  // namespace pyfold::gpu

#pragma once

#include "core/normal.h"

// The normals of core/normal.h in fewer instructions of a GPU; the same bits, for every word.
namespace pyfold {
namespace {

// A product of two words is one instruction. Written in C++, nvcc makes all of a round 64 bits wide and ptxas adds
// zeros to the high words.
struct DeviceLanes : ScalarLanes {
  static __device__ __forceinline__ Product multiply(Word a, uint32_t constant) {
    Product product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(constant));
    return product;
  }
};

// Where ScalarNormals converts, masks and shifts, the same from fewer operations on bits.
struct DeviceNormals : ScalarNormals {
  static PYFOLD_HD void halve(uint32_t word0, float& halvings, float& f) {
    // The low half as the end of a mantissa, 2^23 + low; exact, and so is the difference.
    const float low_and_half = bits_to_float(0x4B000000u | (word0 & 0xFFFFu)) - 8388607.5f;
    const float scaled = fma(static_cast<float>(static_cast<int32_t>(word0 >> 16)), 65536.0f, low_and_half);
    constexpr uint32_t k32Exponents = 32u << 23;
    const uint32_t shifted = float_to_bits(scaled) - (0x3F3504F3u + k32Exponents);
    const int32_t doublings = static_cast<int32_t>(shifted) >> 23;  // minus halvings
    const float mantissa = bits_to_float((shifted & 0x007FFFFFu) + 0x3F3504F3u);
    const float below_one = fma(static_cast<float>(static_cast<int32_t>(word0)), 0x1p-32f, 0x1p-33f);
    f = doublings == 0 ? below_one : mantissa - 1.0f;
    halvings = -static_cast<float>(doublings);
  }

  static PYFOLD_HD void rotate(uint32_t word1, float radius, float cosine, float sine, float& z0, float& z1) {
    // The two highest bits are the quarter turns, in the second sum one more.
    const uint32_t turned = word1 + 0x20000000u, further = word1 + 0x60000000u;
    const bool swap = (turned & 0x40000000u) != 0u;
    z0 = radius * bits_to_float(float_to_bits(swap ? sine : cosine) ^ (further & 0x80000000u));
    z1 = radius * bits_to_float(float_to_bits(swap ? cosine : sine) ^ (turned & 0x80000000u));
  }
};

__device__ __forceinline__ void device_normal_block(const NoiseKey& key, uint64_t block,
                                                    float (&out)[kNormalsPerBlock]) {
  normal_block_as<DeviceLanes, DeviceNormals>(key, block, out);
}

}  // namespace
}  // namespace pyfold

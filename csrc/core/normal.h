#pragma once

#include <stdint.h>

#include "core/macros.h"
#include "core/math.h"
#include "core/philox.h"

// Two independent standard normals from two 32-bit words: Box and Muller, "A note on the generation of random normal
// deviates", Ann. Math. Stat. 29 (1958), with u = (word0 + 1/2) / 2^32 and v = (word1 + 1/2) / 2^32:
//   z0 = sqrt(-2 ln u) cos(2 pi v),   z1 = sqrt(-2 ln u) sin(2 pi v).
// docs/noise.md gives these operations in order; changing any of them changes every user's samples.
namespace pyfold {
namespace {

constexpr int kNormalsPerBlock = 4;

// The transform is written once, for the words and floats that a lane policy describes, as in philox.h; floats have *,
// fma and square_root. The policy has the three steps that work on bits:
//   halve(word0, halvings, f)               u = 2^-halvings (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))
//   turn(word1)                             the angle's rest beyond the nearest quarter turn, in (-1/2, 1/2) of one
//   rotate(word1, radius, cosine, sine, .)  radius (cosine, sine), by as many quarter turns
struct ScalarNormals {
  using Word = uint32_t;
  using Float = float;

  static PYFOLD_HD void halve(uint32_t word0, float& halvings, float& f) {
    // word0 + 1/2, rounded once: the halves are exact in float32, also where there is no unsigned conversion.
    const float high = static_cast<float>(static_cast<int32_t>(word0 >> 16));
    const float low = static_cast<float>(static_cast<int32_t>(word0 & 0xFFFFu));
    const float scaled = fma(high, 65536.0f, low + 0.5f);
    const uint32_t shifted = float_to_bits(scaled) - 0x3F3504F3u;
    const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
    const float mantissa = bits_to_float((shifted & 0x007FFFFFu) + 0x3F3504F3u);
    // Near u = 1 the word itself, read as a negative integer, is u - 1 to all its bits: small radii keep their
    // resolution.
    const float below_one = fma(static_cast<float>(static_cast<int32_t>(word0)), 0x1p-32f, 0x1p-33f);
    f = exponent == 32 ? below_one : mantissa - 1.0f;
    halvings = static_cast<float>(32 - exponent);
  }

  // Reduced exactly, in integers.
  static PYFOLD_HD float turn(uint32_t word1) {
    return static_cast<float>(static_cast<int32_t>((word1 << 2) | 2u)) * 0x1p-32f;
  }

  static PYFOLD_HD void rotate(uint32_t word1, float radius, float cosine, float sine, float& z0, float& z1) {
    const uint32_t q = (word1 + 0x20000000u) >> 30;
    const bool swap = (q & 1u) != 0u;
    const uint32_t cosine_sign = ((q + 1u) & 2u) << 30;
    const uint32_t sine_sign = (q & 2u) << 30;
    z0 = radius * bits_to_float(float_to_bits(swap ? sine : cosine) ^ cosine_sign);
    z1 = radius * bits_to_float(float_to_bits(swap ? cosine : sine) ^ sine_sign);
  }
};

template <class Lanes>
PYFOLD_HD void box_muller(typename Lanes::Word word0, typename Lanes::Word word1, typename Lanes::Float& z0,
                          typename Lanes::Float& z1) {
  using Float = typename Lanes::Float;
  Float halvings, f;
  Lanes::halve(word0, halvings, f);
  // -2 ln(1 + f) = -2 f + f^2 (1 + f P(f)); minimax, relative error 3.2e-8.
  Float p = fma(f, -0.17400869727134705f, 0.2853496670722961f);
  p = fma(f, p, -0.2982953786849976f);
  p = fma(f, p, 0.3315517008304596f);
  p = fma(f, p, -0.3992612659931183f);
  p = fma(f, p, 0.5000267624855042f);
  p = fma(f, p, -0.6666781902313232f);
  const Float log_mantissa = fma(f, -2.0f, (f * f) * fma(f, p, 1.0f));
  const Float radius = square_root(fma(halvings, 1.3862943611198906f, log_mantissa));

  const Float turn = Lanes::turn(word1);
  const Float z = turn * turn;
  Float sine = fma(z, -0.00460165785625577f, 0.07968003302812576f);
  sine = fma(z, sine, -0.6459634900093079f);
  sine = turn * fma(z, sine, 1.5707963705062866f);
  Float cosine = fma(z, -0.020417282357811928f, 0.2536032199859619f);
  cosine = fma(z, cosine, -1.2336976528167725f);
  cosine = fma(z, cosine, 1.0f);
  Lanes::rotate(word1, radius, cosine, sine, z0, z1);
}

// Which noise: one stream of normals for each (seed, stream, step), indexed by the logical element.
struct NoiseKey {
  uint32_t seed_low, seed_high;
  uint32_t stream, step;
  uint64_t first_block;  // of element 0; those that follow wrap at 2^64
  friend bool operator==(const NoiseKey&, const NoiseKey&) = default;
};

PYFOLD_HD NoiseKey noise_key(int64_t seed, uint32_t stream, uint32_t step, uint64_t first_block) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32), stream, step, first_block};
}

// The normals of elements 4 * block ... 4 * block + 3, with a policy for philox.h and one for the transform.
template <class Words, class Normals>
PYFOLD_HD void normal_block_as(const NoiseKey& key, uint64_t block, float (&out)[kNormalsPerBlock]) {
  block += key.first_block;
  uint32_t counter[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), key.step, key.stream};
  philox4x32<Words>(counter, key.seed_low, key.seed_high);
  box_muller<Normals>(counter[0], counter[1], out[0], out[1]);
  box_muller<Normals>(counter[2], counter[3], out[2], out[3]);
}
PYFOLD_HD void normal_block(const NoiseKey& key, uint64_t block, float (&out)[kNormalsPerBlock]) {
  normal_block_as<ScalarLanes, ScalarNormals>(key, block, out);
}

}  // namespace
}  // namespace pyfold

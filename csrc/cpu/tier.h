#pragma once

// The CPU kernels are compiled once per instruction set (tier); one tier is chosen when the library is first used, by
// the environment variable PYFOLD_CPU_CAPABILITY or else the best one that this machine has.
namespace pyfold::cpu {

enum class Tier : int { kBaseline, kAvx2, kAvx512, kNeon };
constexpr int kTierCount = 4;

#define PYFOLD_EXPORT __attribute__((visibility("default")))

PYFOLD_EXPORT const char* tier_name(Tier tier);
PYFOLD_EXPORT bool tier_built(Tier tier);
PYFOLD_EXPORT bool tier_supported(Tier tier);  // built, and this machine can run it

// Throws std::invalid_argument where PYFOLD_CPU_CAPABILITY names no tier, or one that cannot run here.
PYFOLD_EXPORT Tier current_tier();
PYFOLD_EXPORT void set_tier(const char* name);

}  // namespace pyfold::cpu

#define PYFOLD_CONCAT_(a, b) a##_##b
#define PYFOLD_CONCAT(a, b) PYFOLD_CONCAT_(a, b)
// The symbol of this translation unit's kernel table, as in diffusion_kernels_avx2.
#define PYFOLD_TIER_SYMBOL(family) PYFOLD_CONCAT(family, PYFOLD_TIER)

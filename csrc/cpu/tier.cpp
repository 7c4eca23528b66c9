#include "cpu/tier.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/diffusion.h"
#include "cpu/folds.h"
#include "cpu/sequence.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pyfold::cpu {

namespace {

constexpr const char* kNames[kTierCount] = {"baseline", "avx2", "avx512", "neon"};

#if defined(PYFOLD_HAVE_BASELINE)
#define PYFOLD_IF_BASELINE(x) x
#else
#define PYFOLD_IF_BASELINE(x) nullptr
#endif
#if defined(PYFOLD_HAVE_AVX2)
#define PYFOLD_IF_AVX2(x) x
#else
#define PYFOLD_IF_AVX2(x) nullptr
#endif
#if defined(PYFOLD_HAVE_AVX512)
#define PYFOLD_IF_AVX512(x) x
#else
#define PYFOLD_IF_AVX512(x) nullptr
#endif
#if defined(PYFOLD_HAVE_NEON)
#define PYFOLD_IF_NEON(x) x
#else
#define PYFOLD_IF_NEON(x) nullptr
#endif

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports knows no f16c before version 16.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

bool machine_has(Tier tier) {
#if defined(__x86_64__)
  switch (tier) {
    case Tier::kBaseline:
      return true;
    case Tier::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
             has_f16c();
    case Tier::kAvx512:
      return machine_has(Tier::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Tier::kNeon:
      return false;
  }
  return false;
#elif defined(__aarch64__)
  return tier == Tier::kNeon;
#else
  return tier == Tier::kBaseline;
#endif
}

std::string supported_names() {
  std::string names;
  for (int i = 0; i < kTierCount; ++i) {
    if (tier_supported(static_cast<Tier>(i))) names += (names.empty() ? "" : ", ") + std::string(kNames[i]);
  }
  return names;
}

Tier parse(const std::string& name, const char* source) {
  for (int i = 0; i < kTierCount; ++i) {
    const Tier tier = static_cast<Tier>(i);
    if (name == kNames[i] && tier_supported(tier)) return tier;
  }
  throw std::invalid_argument(std::string(source) + " is '" + name + "', but this build on this machine can run " +
                              supported_names());
}

Tier initial_tier() {
  const char* forced = std::getenv("PYFOLD_CPU_CAPABILITY");
  if (forced != nullptr && *forced != '\0') return parse(forced, "PYFOLD_CPU_CAPABILITY");
  for (Tier tier : {Tier::kAvx512, Tier::kAvx2, Tier::kNeon}) {
    if (tier_supported(tier)) return tier;
  }
  return Tier::kBaseline;
}

std::atomic<int>& chosen() {
  static std::atomic<int> tier{static_cast<int>(initial_tier())};
  return tier;
}

}  // namespace

const char* tier_name(Tier tier) { return kNames[static_cast<int>(tier)]; }

bool tier_built(Tier tier) {
  constexpr bool built[kTierCount] = {
#if defined(PYFOLD_HAVE_BASELINE)
      true,
#else
      false,
#endif
#if defined(PYFOLD_HAVE_AVX2)
      true,
#else
      false,
#endif
#if defined(PYFOLD_HAVE_AVX512)
      true,
#else
      false,
#endif
#if defined(PYFOLD_HAVE_NEON)
      true,
#else
      false,
#endif
  };
  return built[static_cast<int>(tier)];
}

bool tier_supported(Tier tier) { return tier_built(tier) && machine_has(tier); }

Tier current_tier() { return static_cast<Tier>(chosen().load(std::memory_order_relaxed)); }

void set_tier(const char* name) {
  chosen().store(static_cast<int>(parse(name, "the CPU capability")), std::memory_order_relaxed);
}

#define PYFOLD_TABLES(family)                                                                                  \
  {PYFOLD_IF_BASELINE(&family##_baseline), PYFOLD_IF_AVX2(&family##_avx2), PYFOLD_IF_AVX512(&family##_avx512), \
   PYFOLD_IF_NEON(&family##_neon)}

const DiffusionKernels& diffusion_kernels() {
  static constexpr const DiffusionKernels* tables[kTierCount] = PYFOLD_TABLES(diffusion_kernels);
  return *tables[static_cast<int>(current_tier())];
}

const FoldKernels& fold_kernels() {
  static constexpr const FoldKernels* tables[kTierCount] = PYFOLD_TABLES(fold_kernels);
  return *tables[static_cast<int>(current_tier())];
}

const SequenceKernels& sequence_kernels() {
  static constexpr const SequenceKernels* tables[kTierCount] = PYFOLD_TABLES(sequence_kernels);
  return *tables[static_cast<int>(current_tier())];
}

}  // namespace pyfold::cpu

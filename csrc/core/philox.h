#pragma once

#include <stdint.h>

#include "core/macros.h"

// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11, section 4.3.
//
// The rounds are written once, for a word type W that a lane policy describes:
//   Lanes::multiply(a, constant)  the 64-bit product of the low 32 bits of a
//   Lanes::high(p), Lanes::low(p) its two words; bits above the 32nd of a word may hold anything
//   Lanes::xor3(a, b, key)        all three, of which the last is a word as a policy keeps keys: Lanes::key(word)
// so the same text serves one 32-bit register (GPU, tests) and vectors of 64-bit lanes (CPU).
namespace pyfold {
namespace {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct ScalarLanes {
  using Word = uint32_t;
  using Key = uint32_t;
  using Product = uint64_t;
  static PYFOLD_HD Product multiply(Word a, uint32_t constant) { return static_cast<uint64_t>(a) * constant; }
  static PYFOLD_HD Word high(Product p) { return static_cast<uint32_t>(p >> 32); }
  static PYFOLD_HD Word low(Product p) { return static_cast<uint32_t>(p); }
  static PYFOLD_HD Word broadcast(uint32_t value) { return value; }
  static PYFOLD_HD Key key(uint32_t value) { return value; }
  static PYFOLD_HD Word xor3(Word a, Word b, uint32_t key) { return a ^ b ^ key; }
};

template <class Lanes>
PYFOLD_HD void philox_round(typename Lanes::Word (&counter)[4], const typename Lanes::Key& key0,
                            const typename Lanes::Key& key1) {
  const auto product0 = Lanes::multiply(counter[0], kPhiloxMultiplier0);
  const auto product1 = Lanes::multiply(counter[2], kPhiloxMultiplier1);
  counter[0] = Lanes::xor3(Lanes::high(product1), counter[1], key0);
  counter[1] = Lanes::low(product1);
  counter[2] = Lanes::xor3(Lanes::high(product0), counter[3], key1);
  counter[3] = Lanes::low(product0);
}

template <class Lanes>
PYFOLD_HD void philox4x32(typename Lanes::Word (&counter)[4], uint32_t key0, uint32_t key1) {
  PYFOLD_UNROLL
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round<Lanes>(counter, Lanes::key(key0), Lanes::key(key1));
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

}  // namespace
}  // namespace pyfold

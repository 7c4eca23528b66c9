#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/philox.h"

// Lanes for philox.h on a vector unit: 64-bit lanes, because the widening multiply of every instruction set reads the
// low half of a 64-bit lane and ignores the rest. A round is then two multiplies, two shifts and two three-way xors.
namespace pyfold {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Loops over vectors that have to stay in registers, and of one chain of instructions, beside which another finds room.
#if defined(__clang__)
#define PYFOLD_UNROLL_VECTORS _Pragma("unroll")
#define PYFOLD_UNROLL_TWICE _Pragma("unroll 2")
#else
#define PYFOLD_UNROLL_VECTORS _Pragma("GCC unroll 16")
#define PYFOLD_UNROLL_TWICE _Pragma("GCC unroll 2")
#endif

struct VectorLanes {
  typedef uint64_t Word __attribute__((vector_size(kVectorBytes)));
  using Product = Word;
  static constexpr int kCount = kVectorBytes / 8;

  static PYFOLD_HD Word broadcast(uint32_t value) { return Word{} + value; }
  static PYFOLD_HD Word low(Product p) { return p; }
  static PYFOLD_HD Word from_key(uint64_t key) { return Word{} + key; }
  static PYFOLD_HD Word from_key(Word key) { return key; }
#if defined(__AVX512F__)
  // What a round's key is kept as: a load of AVX-512 can broadcast.
  using Key = uint64_t;
  static PYFOLD_HD Key key(uint64_t value) { return value; }
  // Out of the compiler's sight, which would load all keys ahead of a loop and find no registers for them.
  template <class Keys>
  static PYFOLD_HD const Keys* in_memory(const Keys* keys) {
    asm("" : "+r"(keys));
    return keys;
  }
  // Written out, because GCC 12 copies a key to where the result shall lie.
  static PYFOLD_HD Word xor3(Word a, Word b, const Key& key) {
    asm("vpternlogq $0x96, %2%{1to8%}, %1, %0" : "+v"(a) : "v"(b), "m"(key));
    return a;
  }
  // Shuffles run on more pipes than shifts. Zero-masking forms: GCC 12 warns about the plain ones' own undefined
  // operand.
  static PYFOLD_HD Word high(Product p) { return (Word)_mm512_maskz_shuffle_epi32(0xFFFF, (__m512i)p, _MM_PERM_DDBB); }
  static PYFOLD_HD Product multiply(Word a, uint32_t constant) {
    return (Word)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)broadcast(constant));
  }
  // The high word of a beside the high word of b.
  static PYFOLD_HD Word pair_high(Word a, Word b) {
    return (Word)_mm512_mask_shuffle_epi32((__m512i)b, 0x5555, (__m512i)a, _MM_PERM_DDBB);
  }
  // The low word of a beside the low word of b.
  static PYFOLD_HD Word pair(Word a, Word b) {
    return (Word)_mm512_mask_shuffle_epi32((__m512i)a, 0xAAAA, (__m512i)b, _MM_PERM_CCAA);
  }
#else
  using Key = Word;
  static PYFOLD_HD Key key(uint64_t value) { return Word{} + value; }
  template <class Keys>
  static PYFOLD_HD const Keys* in_memory(const Keys* keys) {
    return keys;
  }
  static PYFOLD_HD Word xor3(Word a, Word b, const Key& key) { return a ^ b ^ key; }
  static PYFOLD_HD Word high(Product p) { return p >> 32; }
  static PYFOLD_HD Word pair_high(Word a, Word b) {
#if defined(__AVX2__)
    return (Word)_mm256_blend_epi32((__m256i)(a >> 32), (__m256i)b, 0xAA);
#else
    return (a >> 32) | (b & 0xFFFFFFFF00000000u);
#endif
  }
  static PYFOLD_HD Word pair(Word a, Word b) {
#if defined(__AVX2__)
    return (Word)_mm256_blend_epi32((__m256i)a, (__m256i)(b << 32), 0xAA);
#else
    return (a & 0xFFFFFFFFu) | (b << 32);
#endif
  }
  static PYFOLD_HD Product multiply(Word a, uint32_t constant) {
#if defined(__AVX2__)
    return (Word)_mm256_mul_epu32((__m256i)a, (__m256i)broadcast(constant));
#elif defined(__SSE2__)
    return (Word)_mm_mul_epu32((__m128i)a, (__m128i)broadcast(constant));
#elif defined(__aarch64__)
    return (Word)vmull_n_u32(vmovn_u64((uint64x2_t)a), constant);
#else
    return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(constant);
#endif
  }
#endif
};

}  // namespace
}  // namespace pyfold

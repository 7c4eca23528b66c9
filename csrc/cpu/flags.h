#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/bits.h"

// Bits of folds, from and to bytes that are 0 or 1; the result is the same with every instruction set. Whole bytes are
// read and written: flags has room to the next multiple of 8.
namespace pyfold {
namespace {

inline void pack_flags(const uint8_t* flags, uint8_t* bytes, int count) {
  int i = 0;
#if defined(__AVX512BW__)
  for (; i + 64 <= count; i += 64) {
    const __m512i part = _mm512_loadu_si512(flags + i);
    const uint64_t word = _mm512_test_epi8_mask(part, part);
    memcpy(bytes + i / 8, &word, sizeof word);
  }
#endif
#if defined(__AVX2__)
  for (; i + 32 <= count; i += 32) {
    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags + i));
    const int word = _mm256_movemask_epi8(_mm256_slli_epi16(part, 7));
    memcpy(bytes + i / 8, &word, sizeof word);
  }
#elif defined(__SSE2__)
  for (; i + 16 <= count; i += 16) {
    const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(flags + i));
    const int16_t word = static_cast<int16_t>(_mm_movemask_epi8(_mm_slli_epi16(part, 7)));
    memcpy(bytes + i / 8, &word, sizeof word);
  }
#endif
  for (; i < count; i += 8) bytes[i / 8] = pack_bits(flags + i);
}

inline void unpack_flags(const uint8_t* bytes, uint8_t* flags, int count) {
  int i = 0;
#if defined(__AVX512BW__)
  for (; i + 64 <= count; i += 64) {
    uint64_t word;
    memcpy(&word, bytes + i / 8, sizeof word);
    _mm512_storeu_si512(flags + i, _mm512_maskz_set1_epi8(word, 1));
  }
#endif
#if defined(__AVX2__)
  // Byte i / 8 in every byte i, then bit i % 8 of it.
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i select = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  for (; i + 32 <= count; i += 32) {
    int word;
    memcpy(&word, bytes + i / 8, sizeof word);
    const __m256i bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), spread), select);
    const __m256i set = _mm256_cmpeq_epi8(bits, select);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(flags + i), _mm256_and_si256(set, _mm256_set1_epi8(1)));
  }
#endif
  for (; i < count; i += 8) unpack_bits(bytes[i / 8], flags + i);
}

}  // namespace
}  // namespace pyfold

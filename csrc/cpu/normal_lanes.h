#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/normal.h"

// Lanes for normal.h with AVX-512 and AVX2, the bits of ScalarNormals with fewer instructions than the compiler's
// vectors of them. Every other instruction set runs the scalar text.
//
// AVX-512 has masks, an unsigned conversion and one of exponents. The multipliers are what a core has least of, so
// powers of two are multiplied into exponents, and an instruction of two operands is better than one of three, which
// cannot start beside a fused multiply-add (measured on Zen 4).
namespace pyfold {
namespace {

#if defined(__AVX512F__)
struct VectorNormals {
  static constexpr int kCount = 16;
  using Word = __m512i;

  struct Float {
    __m512 lanes;
    Float() = default;
    PYFOLD_HD Float(__m512 value) : lanes(value) {}
    PYFOLD_HD Float(float value) : lanes(_mm512_set1_ps(value)) {}
    friend PYFOLD_HD Float operator*(Float a, Float b) { return _mm512_mul_ps(a.lanes, b.lanes); }
    friend PYFOLD_HD Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a.lanes, b.lanes, c.lanes); }
    // Zero-masking forms, here and below: GCC 12 warns about the plain ones' own undefined operand.
    friend PYFOLD_HD Float square_root(Float a) { return _mm512_maskz_sqrt_ps(0xFFFF, a.lanes); }
  };

  static PYFOLD_HD Word bits(__m512 value) { return _mm512_castps_si512(value); }
  static PYFOLD_HD __m512 from_bits(Word value) { return _mm512_castsi512_ps(value); }
  static PYFOLD_HD Word words(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }

  static PYFOLD_HD void halve(Word word0, Float& halvings, Float& f) {
    // The low half as the mantissa's end of a number in [2^23, 2^24).
    const __m512 low_end = from_bits(_mm512_mask_blend_epi16(0xAAAAAAAA, word0, words(0x4B000000)));
    const __m512 low = _mm512_sub_ps(low_end, _mm512_set1_ps(0x1p23f - 0.5f));
    const __m512 high = _mm512_maskz_cvtepu32_ps(0xFFFF, _mm512_and_si512(word0, words(0xFFFF0000)));
    const __m512 scaled = _mm512_add_ps(high, low);
    // Reversed: halvings + 127 in the exponent's place, below it the ones' complement of the scalar text's mantissa.
    const Word reversed = _mm512_sub_epi32(words(0x8F3504F2), bits(scaled));
    halvings = _mm512_maskz_getexp_ps(0xFFFF, from_bits(reversed));
    const Word mantissa = _mm512_maskz_andnot_epi32(0xFFFF, reversed, words(0x007FFFFF));
    const __m512 one_and_f = from_bits(_mm512_add_epi32(mantissa, words(0x3F3504F3)));
    const __m512 below_one =
        _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xFFFF, word0), _mm512_set1_ps(0x1p-32f), _mm512_set1_ps(0x1p-33f));
    // The first word that is rounded to sqrt(1/2) 2^32 or more.
    const __mmask16 halved = _mm512_cmplt_epu32_mask(word0, words(0xB504F280));
    f = _mm512_mask_sub_ps(below_one, halved, one_and_f, _mm512_set1_ps(1.0f));
  }

  static PYFOLD_HD Float turn(Word word1) {
    const Word shifted = _mm512_or_si512(_mm512_maskz_slli_epi32(0xFFFF, word1, 2), words(2));
    return from_bits(_mm512_sub_epi32(bits(_mm512_maskz_cvtepi32_ps(0xFFFF, shifted)), words(32 << 23)));
  }

  static PYFOLD_HD void rotate(Word word1, Float radius, Float cosine, Float sine, Float& z0, Float& z1) {
    // Bit 31: half a turn, which is both signs. Bit 30: a quarter, which is (-sine, cosine).
    const Word q = _mm512_add_epi32(word1, words(0x20000000));
    const __mmask16 quarter = _mm512_test_epi32_mask(q, words(0x40000000));
    const Float signed_radius = from_bits(_mm512_ternarylogic_epi32(bits(radius.lanes), q, words(0x80000000), 0x78));
    z1 = signed_radius * Float(_mm512_mask_blend_ps(quarter, sine.lanes, cosine.lanes));
    z0 = signed_radius *
         Float(from_bits(_mm512_mask_xor_epi32(bits(cosine.lanes), quarter, bits(sine.lanes), words(0x80000000))));
  }

  static PYFOLD_HD Word load(const uint32_t* aligned) { return _mm512_load_si512(aligned); }
  // Pairs side by side; within quarters of a vector, which is why blocks lie in it as NormalStream::block_of_lane says.
  static PYFOLD_HD void store(float* out, Float z0, Float z1) {
    _mm512_storeu_ps(out, _mm512_maskz_unpacklo_ps(0xFFFF, z0.lanes, z1.lanes));
    _mm512_storeu_ps(out + kCount, _mm512_maskz_unpackhi_ps(0xFFFF, z0.lanes, z1.lanes));
  }
};
#define PYFOLD_VECTOR_NORMALS 1

#elif defined(__AVX2__) && defined(__FMA__)
struct VectorNormals {
  static constexpr int kCount = 8;
  using Word = __m256i;

  struct Float {
    __m256 lanes;
    Float() = default;
    PYFOLD_HD Float(__m256 value) : lanes(value) {}
    PYFOLD_HD Float(float value) : lanes(_mm256_set1_ps(value)) {}
    friend PYFOLD_HD Float operator*(Float a, Float b) { return _mm256_mul_ps(a.lanes, b.lanes); }
    friend PYFOLD_HD Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a.lanes, b.lanes, c.lanes); }
    friend PYFOLD_HD Float square_root(Float a) { return _mm256_sqrt_ps(a.lanes); }
  };

  static PYFOLD_HD Word bits(__m256 value) { return _mm256_castps_si256(value); }
  static PYFOLD_HD __m256 from_bits(Word value) { return _mm256_castsi256_ps(value); }
  static PYFOLD_HD Word words(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }

  static PYFOLD_HD void halve(Word word0, Float& halvings, Float& f) {
    // The low half as the mantissa's end of a number in [2^23, 2^24).
    const __m256 low_end = from_bits(_mm256_blend_epi16(word0, words(0x4B000000), 0xAA));
    const __m256 low = _mm256_sub_ps(low_end, _mm256_set1_ps(0x1p23f - 0.5f));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(word0, 16));
    const __m256 scaled = _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
    // Reversed: halvings above 23 bits, which are the ones' complement of the scalar text's mantissa.
    const Word reversed = _mm256_sub_epi32(words(0x3F3504F2u + (33u << 23)), bits(scaled));
    const Word count = _mm256_srli_epi32(reversed, 23);
    halvings = _mm256_cvtepi32_ps(count);
    const Word mantissa = _mm256_andnot_si256(reversed, words(0x007FFFFF));
    const __m256 one_and_f = from_bits(_mm256_add_epi32(mantissa, words(0x3F3504F3)));
    const __m256 below_one =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(word0), _mm256_set1_ps(0x1p-32f), _mm256_set1_ps(0x1p-33f));
    const __m256 whole = from_bits(_mm256_cmpeq_epi32(count, _mm256_setzero_si256()));
    f = _mm256_blendv_ps(_mm256_sub_ps(one_and_f, _mm256_set1_ps(1.0f)), below_one, whole);
  }

  static PYFOLD_HD Float turn(Word word1) {
    const Word shifted = _mm256_or_si256(_mm256_slli_epi32(word1, 2), words(2));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(shifted), _mm256_set1_ps(0x1p-32f));
  }

  static PYFOLD_HD void rotate(Word word1, Float radius, Float cosine, Float sine, Float& z0, Float& z1) {
    // Bit 31: half a turn, which is both signs. Bit 30: a quarter, which is (-sine, cosine); blends look at bit 31.
    const Word q = _mm256_add_epi32(word1, words(0x20000000));
    const __m256 quarter = from_bits(_mm256_slli_epi32(q, 1));
    const Word half = _mm256_and_si256(q, words(0x80000000));
    const Float signed_radius = from_bits(_mm256_xor_si256(bits(radius.lanes), half));
    const __m256 minus_sine = from_bits(_mm256_xor_si256(bits(sine.lanes), words(0x80000000)));
    z0 = signed_radius * Float(_mm256_blendv_ps(cosine.lanes, minus_sine, quarter));
    z1 = signed_radius * Float(_mm256_blendv_ps(sine.lanes, cosine.lanes, quarter));
  }

  static PYFOLD_HD Word load(const uint32_t* aligned) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(aligned));
  }
  // Pairs side by side; within halves of a vector, which is why blocks lie in it as NormalStream::block_of_lane says.
  static PYFOLD_HD void store(float* out, Float z0, Float z1) {
    _mm256_storeu_ps(out, _mm256_unpacklo_ps(z0.lanes, z1.lanes));
    _mm256_storeu_ps(out + kCount, _mm256_unpackhi_ps(z0.lanes, z1.lanes));
  }
};
#define PYFOLD_VECTOR_NORMALS 1
#endif

}  // namespace
}  // namespace pyfold

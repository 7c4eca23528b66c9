#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/normal.h"

// Lanes for normal.h with AVX-512, the bits of ScalarNormals with fewer instructions than the compiler's vectors of
// them: there are masks, an unsigned conversion and one of exponents. Every other instruction set runs the scalar text.
//
// The multipliers are what a core has least of, so powers of two are multiplied into exponents, and an instruction of
// two operands is better than one of three, which cannot start beside a fused multiply-add (measured on Zen 4).
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
    const Word rest = _mm512_or_si512(_mm512_maskz_slli_epi32(0xFFFF, word1, 2), words(2));
    return from_bits(_mm512_sub_epi32(bits(_mm512_maskz_cvtepi32_ps(0xFFFF, rest)), words(32 << 23)));
  }

  static PYFOLD_HD void rotate(Word word1, Float radius, Float cosine, Float sine, Float& z0, Float& z1) {
    // Bit 31: half a turn, which is both signs. Bit 30: a quarter, which is (-sine, cosine).
    const Word q = _mm512_add_epi32(word1, words(0x20000000));
    const __mmask16 quarter = _mm512_test_epi32_mask(q, words(0x40000000));
    const Word half = _mm512_and_si512(q, words(0x80000000));
    const Float signed_radius = from_bits(_mm512_xor_si512(bits(radius.lanes), half));
    const __m512 minus_sine = from_bits(_mm512_xor_si512(bits(sine.lanes), words(0x80000000)));
    z0 = signed_radius * Float(_mm512_mask_blend_ps(quarter, cosine.lanes, minus_sine));
    z1 = signed_radius * Float(_mm512_mask_blend_ps(quarter, sine.lanes, cosine.lanes));
  }
};
#endif

}  // namespace
}  // namespace pyfold

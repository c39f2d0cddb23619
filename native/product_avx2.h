// AVX2: pairs of products of 8 bits, in 16 bits.
#include <immintrin.h>

#include "processor.h"

#define NAME_TEXT "avx2"

enum { AT_ONCE = 1, SUMS = 4, UNPACKED_FROM = 12 };

static int is_here(void) { return processor_has_avx2(); }

INLINE __m256i load_line(const uint8_t *at) { return _mm256_loadu_si256((const __m256i *)at); }

INLINE __m256i broadcast_four(const int8_t *values) {
  int32_t four;
  memcpy(&four, values, sizeof four);
  return _mm256_set1_epi32(four);
}

// Of the bytes of a line the lower four bits, or the upper ones.
INLINE __m256i weights_at(const uint8_t *line, const form f, int upper, int half, int eight) {
  if (f.unpacked) return load_line(line + 64 * upper + 32 * eight);
  const __m256i both = load_line(line + 64 * half + 32 * eight);
  return _mm256_and_si256(upper ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
}

// Add the products of so many outputs, by eights: what is read of activations serves all of them. Of
// weights in 8 bits the lower and the upper four are multiplied apart. A place of 16 bits holds
// sixteen products of 15 x 127 at most, of all that comes to it.
INLINE void dot_products_of(const uint8_t *weights, const int8_t *values, const form f,
                            const int half, const int first, const int eights,
                            ivec dots[TOGETHER][AT_ONCE]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[2][TOGETHER][2];
  for (int s = 0; s < 2; s++)
    for (int r = 0; r < f.rows; r++)
      for (int e = 0; e < eights; e++) sums[s][r][e] = _mm256_setzero_si256();
  if (f.unpacked) weights += half * f.unit * LANES;
#pragma clang loop unroll(full)
  for (int line = 0; line < f.unit * f.bits / 32; line++, weights += LINE_BYTES)
    for (int upper = 0; upper < 2; upper++) {
      const int input = f.bits == 4 ? 8 * line + 4 * upper : 4 * line;
      __m256i of[2];
      for (int e = 0; e < eights; e++) of[e] = weights_at(weights, f, upper, half, first + e);
      for (int r = 0; r < f.rows; r++) {
        const __m256i x = broadcast_four(values + r * f.unit + input);
        for (int e = 0; e < eights; e++) {
          __m256i *sum = &sums[f.bits == 8 && upper][r][e];
          *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(of[e], x));
        }
      }
    }
  for (int r = 0; r < f.rows; r++)
    for (int e = 0; e < eights; e++) {
      __m256i sum = _mm256_madd_epi16(sums[0][r][e], ones), before;
      if (f.bits == 8)
        sum = _mm256_add_epi32(sum, _mm256_slli_epi32(_mm256_madd_epi16(sums[1][r][e], ones), 4));
      char *to = (char *)dots[r] + 32 * (first + e);
      memcpy(&before, to, sizeof before);
      before = _mm256_add_epi32(before, sum);
      memcpy(to, &before, sizeof before);
    }
}

// By sixteen outputs, or by eight where there are not registers enough.
INLINE void dot_products(const uint8_t *weights, const int8_t *values, const form f, int half,
                         ivec dots[TOGETHER][AT_ONCE]) {
  const int eights = f.bits == 4 ? 2 : 1;
  for (int first = 0; first < 2; first += eights)
    dot_products_of(weights, values, f, half, first, eights, dots);
}

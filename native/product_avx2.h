// AVX2: pairs of products of 8 bits, in 16 bits.
#include <immintrin.h>

#include "processor.h"

#define NAME_TEXT "avx2"

static int is_here(void) { return processor_has_avx2(); }

INLINE __m256i low_halves(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
INLINE __m256i high_halves(__m256i bytes) { return low_halves(_mm256_srli_epi16(bytes, 4)); }

INLINE __m256i broadcast_four(const int8_t *values) {
  int32_t four;
  memcpy(&four, values, sizeof four);
  return _mm256_set1_epi32(four);
}

// Sixteen products of 15 x 127 at most: 16 bits hold the sum of all that come to a place of it.
INLINE __m256i add_products(__m256i sum, __m256i weights, const int8_t *values) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, broadcast_four(values)));
}

INLINE void dot_products(const uint8_t *tile, const int8_t *values, const form f,
                         ivec dots[TOGETHER][HALVES]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int quarter = 0; quarter < 4; quarter++) {  // of the outputs
    __m256i low[TOGETHER], high[TOGETHER];
    for (int r = 0; r < f.rows; r++) low[r] = high[r] = _mm256_setzero_si256();
    for (int line = 0; line < f.unit * f.bits / 32; line++) {
      const uint8_t *at = tile + LINE_BYTES * line + 32 * quarter;
      const __m256i both = _mm256_loadu_si256((const __m256i *)at);
      for (int r = 0; r < f.rows; r++) {
        const int8_t *row = values + r * f.unit;
        if (f.bits == 4) {
          low[r] = add_products(low[r], low_halves(both), row + 8 * line);
          low[r] = add_products(low[r], high_halves(both), row + 8 * line + 4);
        } else {
          low[r] = add_products(low[r], low_halves(both), row + 4 * line);
          high[r] = add_products(high[r], high_halves(both), row + 4 * line);
        }
      }
    }
    for (int r = 0; r < f.rows; r++) {
      __m256i sum = _mm256_madd_epi16(low[r], ones), before;
      if (f.bits == 8)
        sum = _mm256_add_epi32(sum, _mm256_slli_epi32(_mm256_madd_epi16(high[r], ones), 4));
      char *to = (char *)dots[r] + 32 * quarter;
      memcpy(&before, to, sizeof before);
      before = _mm256_add_epi32(before, sum);
      memcpy(to, &before, sizeof before);
    }
  }
}

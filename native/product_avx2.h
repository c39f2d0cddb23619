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

// A place of 16 bits holds sixteen products of 15 x 127 at most, of all that comes to it.
// Add the products of so many outputs, by eights: what is read of activations serves all of them. Of
// weights in 8 bits the lower and the upper four are multiplied apart.
INLINE void dot_products_of(const uint8_t *tile, const int8_t *values, const form f, const int first,
                            const int eights, ivec dots[TOGETHER][HALVES]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i low[TOGETHER][2], high[TOGETHER][2];
  for (int r = 0; r < f.rows; r++)
    for (int e = 0; e < eights; e++) low[r][e] = high[r][e] = _mm256_setzero_si256();
  for (int line = 0; line < f.unit * f.bits / 32; line++) {
    __m256i lower[2], upper[2];
    for (int e = 0; e < eights; e++) {
      const uint8_t *at = tile + LINE_BYTES * line + 32 * (first + e);
      const __m256i both = _mm256_loadu_si256((const __m256i *)at);
      lower[e] = low_halves(both);
      upper[e] = high_halves(both);
    }
    for (int r = 0; r < f.rows; r++) {
      const int8_t *row = values + r * f.unit + line * 32 / f.bits;
      const __m256i x = broadcast_four(row), second = f.bits == 4 ? broadcast_four(row + 4) : x;
      for (int e = 0; e < eights; e++) {
        __m256i *sum = f.bits == 4 ? &low[r][e] : &high[r][e];
        low[r][e] = _mm256_add_epi16(low[r][e], _mm256_maddubs_epi16(lower[e], x));
        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(upper[e], second));
      }
    }
  }
  for (int r = 0; r < f.rows; r++)
    for (int e = 0; e < eights; e++) {
      __m256i sum = _mm256_madd_epi16(low[r][e], ones), before;
      if (f.bits == 8)
        sum = _mm256_add_epi32(sum, _mm256_slli_epi32(_mm256_madd_epi16(high[r][e], ones), 4));
      char *to = (char *)dots[r] + 32 * (first + e);
      memcpy(&before, to, sizeof before);
      before = _mm256_add_epi32(before, sum);
      memcpy(to, &before, sizeof before);
    }
}

// By sixteen outputs, or by eight where there are not registers enough.
INLINE void dot_products(const uint8_t *tile, const int8_t *values, const form f,
                         ivec dots[TOGETHER][HALVES]) {
  const int eights = f.bits == 4 ? 2 : 1;
  for (int first = 0; first < PHI3_OUTPUTS / 8; first += eights)
    dot_products_of(tile, values, f, first, eights, dots);
}

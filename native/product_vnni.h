// AVX-512 VNNI: 64 products of 8 bits in one instruction.
#include <immintrin.h>

#include "processor.h"

#define NAME_TEXT "avx512-vnni"

enum { AT_ONCE = HALVES, SUMS = 16, UNPACKED_FROM = 0, AHEAD = 1280 };  // bytes

static int is_here(void) { return processor_has_avx512_vnni(); }

INLINE __m512i weights_at(const uint8_t *line, const form f, int second) {
  const __m512i both = _mm512_loadu_si512(line), low = _mm512_set1_epi8(15);
  if (f.bits == 8) return both;
  return _mm512_and_si512(second ? _mm512_srli_epi16(both, 4) : both, low);
}

INLINE void dot_products(const uint8_t *weights, const int8_t *values, const form f, int at,
                         ivec dots[TOGETHER][AT_ONCE]) {
  for (int four = 0; four < f.unit / 4; four++) {
    const uint8_t *line = weights + (size_t)(f.bits == 8 ? four : four / 2) * LINE_BYTES + 64 * at;
    __m512i four_of[AT_ONCE];
    for (int half = 0; half < AT_ONCE; half++) {
      four_of[half] = weights_at(line + 64 * half, f, four % 2);
      // of memory that is read once, the processor's own guess comes too late
      if (f.rows <= 2 && (f.bits == 8 || four % 2 == 0))
        _mm_prefetch((const char *)line + 64 * half + AHEAD, _MM_HINT_T0);
    }
    for (int r = 0; r < f.rows; r++) {
      int32_t x;
      memcpy(&x, values + r * f.unit + 4 * four, sizeof x);
      for (int half = 0; half < AT_ONCE; half++)
        dots[r][half] = (ivec)_mm512_dpbusd_epi32((__m512i)dots[r][half], four_of[half],
                                                  _mm512_set1_epi32(x));
    }
  }
}

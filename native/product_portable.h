// Plain C: what the others are compared with, and for processors that have none of them.

#define NAME_TEXT "portable"

enum { AT_ONCE = HALVES, SUMS = 16, UNPACKED_FROM = 0 };

static int is_here(void) { return 1; }

INLINE void dot_products(const uint8_t *weights, const int8_t *values, const form f, int at,
                         ivec dots[TOGETHER][AT_ONCE]) {
  for (int r = 0; r < f.rows; r++)
    for (int input = 0; input < f.unit; input++) {
      const int line = f.bits == 4 ? input / 8 : input / 4;
      const int shift = f.bits == 4 ? input / 4 % 2 * 4 : 0;
      const uint8_t *first = weights + LINE_BYTES * line + 4 * LANES * at + input % 4;
      const int32_t value = values[r * f.unit + input];
      for (int output = 0; output < AT_ONCE * LANES; output++)
        dots[r][output / LANES][output % LANES] +=
            (first[4 * output] >> shift & (f.bits == 4 ? 15 : 255)) * value;
    }
}

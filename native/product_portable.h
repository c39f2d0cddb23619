// Plain C: what the others are compared with, and for processors that have none of them.

#define NAME_TEXT "portable"

static int is_here(void) { return 1; }

INLINE void dot_products(const uint8_t *tile, const int8_t *values, const form f,
                         ivec dots[TOGETHER][HALVES]) {
  for (int r = 0; r < f.rows; r++)
    for (int input = 0; input < f.unit; input++) {
      const int line = f.bits == 4 ? input / 8 : input / 4;
      const int shift = f.bits == 4 ? input / 4 % 2 * 4 : 0;
      const uint8_t *weights = tile + LINE_BYTES * line + input % 4;
      const int32_t value = values[r * f.unit + input];
      for (int output = 0; output < PHI3_OUTPUTS; output++)
        dots[r][output / LANES][output % LANES] +=
            (weights[4 * output] >> shift & (f.bits == 4 ? 15 : 255)) * value;
    }
}

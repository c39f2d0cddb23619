// Weights of an ONNX MatMulNBits node in the tiles that model.h describes.
#include <string.h>

#include "model.h"

static int is_sound(const phi3_matrix *w) {
  return w->outputs > 0 && w->inputs > 0 && w->inputs % PHI3_INPUTS == 0 &&
         (w->bits == 4 || w->bits == 8) && w->block > 0 &&
         (w->block == 16 || w->block % PHI3_INPUTS == 0);
}

int64_t phi3_packed_size(const phi3_matrix *w) {
  return is_sound(w) ? (int64_t)(layout_of(w).bytes * (size_t)tiles_of(w)) : 0;
}

// One of a row of numbers of 4 or 8 bits, the first of two in the lower bits.
static uint8_t number_at(const uint8_t *row, int bits, int place) {
  return bits == 8 ? row[place] : row[place / 2] >> (place % 2 * 4) & 15;
}

static void pack_output(const phi3_matrix *w, const uint8_t *weights, const float *scales,
                        const uint8_t *zero_points, int output, uint8_t *tile) {
  const tile_layout layout = layout_of(w);
  const int blocks = blocks_of(w), lane = output % PHI3_OUTPUTS;
  const uint8_t *row = weights + (size_t)output * blocks * w->block * w->bits / 8;
  for (int input = 0; input < blocks * w->block; input++) {
    uint8_t value = number_at(row, w->bits, input);
    if (w->bits == 8)
      tile[(size_t)(input / 4) * LINE_BYTES + lane * 4 + input % 4] = value;
    else
      tile[(size_t)(input / 8) * LINE_BYTES + lane * 4 + input % 4] |=
          (uint8_t)(value << (input / 4 % 2 * 4));
  }
  for (int block = 0; block < blocks; block++) {
    const size_t at = (size_t)block * PHI3_OUTPUTS + lane;
    ((float *)(tile + layout.scales))[at] = scales[(size_t)output * blocks + block];
    if (w->zero_points) {
      const uint8_t *points = zero_points + (size_t)output * ((blocks * w->bits + 7) / 8);
      tile[layout.zero_points + at] = number_at(points, w->bits, block);
    }
  }
}

void phi3_pack(const phi3_matrix *w, const uint8_t *weights, const float *scales,
               const uint8_t *zero_points, uint8_t *packed) {
  const size_t bytes = layout_of(w).bytes;
  memset(packed, 0, bytes * (size_t)tiles_of(w));
  for (int output = 0; output < w->outputs; output++)
    pack_output(w, weights, scales, zero_points, output,
                packed + bytes * (size_t)(output / PHI3_OUTPUTS));
}

// Products of activations in 8 bits with weights in 4 or 8: of a tile and some rows that lie together.
// Included by step.c, which is compiled for one instruction set at a time.
#ifndef PHI3_PRODUCT_H
#define PHI3_PRODUCT_H

#include <string.h>

#include "model.h"
#include "vector.h"

enum { HALVES = PHI3_OUTPUTS / LANES };  // of a tile's outputs

typedef struct {
  int rows, bits, unit, zero_points, unpacked;
} form;  // known to the compiler

// A tile, and its weights of 4 bits once more, each in a byte, where they were unpacked.
typedef struct {
  const uint8_t *packed, *unpacked;
} tile_weights;

// What is brought from memory meanwhile.
typedef struct {
  const uint8_t *at;
  ptrdiff_t bytes;
} coming;

// Each instruction set has
//   AT_ONCE         halves of a tile that it has registers for
//   SUMS            vectors of sums that it has them for in attention
//   dot_products    adds the products of a unit of inputs of these, from one on, with some rows
//   UNPACKED_FROM   rows from which on weights of 4 bits are unpacked once for all; 0 where that is
//                   no gain
//   NAME_TEXT, is_here
#if defined(PHI3_VNNI)
#include "product_vnni.h"
#elif defined(PHI3_AVX2)
#include "product_avx2.h"
#else
#include "product_portable.h"
#endif

INLINE void multiply_digit(const phi3_matrix *w, const tile_weights tile, const activations *x,
                           int digit, int row, const form f, coming next,
                           vec sums[HALVES][TOGETHER]) {
  const tile_layout layout = layout_of(w);
  const int units = x->inputs / f.unit, parts = w->block / f.unit;
  const size_t unit_bytes = (size_t)f.unit * PHI3_OUTPUTS * (f.unpacked ? 8 : f.bits) / 8;
  const uint8_t *weights = f.unpacked ? tile.unpacked : tile.packed;
  const size_t first = ((size_t)digit * x->rows + row) * units;
  const int8_t *values = x->values + first * f.unit;
  const float *x_scales = x->scales + first;
  const int32_t *offsets = x->offsets + first;
  const float *scales = (const float *)(tile.packed + layout.scales);
  const uint8_t *zero_points = tile.packed + layout.zero_points;
  // some lines with each unit: for many at once the processor would wait
  const ptrdiff_t share = (next.bytes / units + 63) / 64 * 64;
  for (int unit = 0; unit < units; scales += PHI3_OUTPUTS, zero_points += PHI3_OUTPUTS) {
    for (int part = 0; part < parts && unit < units; part++, unit++) {
      // in a loop that stays one: where not all halves are there at once, sums are in memory
#pragma clang loop unroll(disable)
      for (int at = 0; at < HALVES; at += AT_ONCE) {
        ivec dots[TOGETHER][AT_ONCE];
        for (int r = 0; r < f.rows; r++) {
          const int32_t middle = f.zero_points ? 0 : offsets[r] * (f.bits == 8 ? 16 : 1);
          for (int half = 0; half < AT_ONCE; half++) dots[r][half] = (ivec){} + middle;
        }
        dot_products(weights, values, f, at, dots);
        for (int half = 0; half < AT_ONCE; half++) {
          const vec scale = load(scales + (at + half) * LANES);
          for (int r = 0; r < f.rows; r++) {
            vec *sum = &sums[at + half][r];
            const vec dot = __builtin_convertvector(dots[r][half], vec);
            *sum = multiply_add(dot, scale * x_scales[r], *sum);
            if (f.zero_points) {
              const vec taken = scale * load_bytes(zero_points + (at + half) * LANES);
              const float off = x_scales[r] * (float)offsets[r] * 0.125f;
              *sum = multiply_add(taken, all(off), *sum);
            }
          }
        }
      }
      if (next.bytes > 0) {
        for (ptrdiff_t i = 0; i < share; i += 64) __builtin_prefetch(next.at + i, 0, 2);
        next.at += share;
        next.bytes -= share;
      }
      weights += unit_bytes;
      values += TOGETHER * f.unit;
      x_scales += TOGETHER;
      offsets += TOGETHER;
    }
  }
}

INLINE void multiply_in_form(const phi3_matrix *w, tile_weights tile, const activations *x, int row,
                             const form f, coming next, float out[TOGETHER][PHI3_OUTPUTS]) {
  vec sums[HALVES][TOGETHER] = {};
  for (int digit = 0; digit < x->digits; digit++) {
    multiply_digit(w, tile, x, digit, row, f, next, sums);
    next.bytes = 0;
  }
  for (int r = 0; r < f.rows; r++)
    for (int half = 0; half < HALVES; half++) store(out[r] + half * LANES, sums[half][r]);
}

INLINE void multiply_counted(const phi3_matrix *w, tile_weights tile, const activations *x, int row,
                             const int rows, coming next, float out[TOGETHER][PHI3_OUTPUTS]) {
  const int kind = (x->unit == 16) * 2 + (w->zero_points != 0);
  if (UNPACKED_FROM > 0 && tile.unpacked) {
    switch (kind) {
      case 0: multiply_in_form(w, tile, x, row, (form){rows, 4, 32, 0, 1}, next, out); break;
      case 1: multiply_in_form(w, tile, x, row, (form){rows, 4, 32, 1, 1}, next, out); break;
      case 2: multiply_in_form(w, tile, x, row, (form){rows, 4, 16, 0, 1}, next, out); break;
      default: multiply_in_form(w, tile, x, row, (form){rows, 4, 16, 1, 1}, next, out); break;
    }
    return;
  }
  switch ((w->bits == 8) * 4 + kind) {
    case 0: multiply_in_form(w, tile, x, row, (form){rows, 4, 32, 0, 0}, next, out); break;
    case 1: multiply_in_form(w, tile, x, row, (form){rows, 4, 32, 1, 0}, next, out); break;
    case 2: multiply_in_form(w, tile, x, row, (form){rows, 4, 16, 0, 0}, next, out); break;
    case 3: multiply_in_form(w, tile, x, row, (form){rows, 4, 16, 1, 0}, next, out); break;
    case 4: multiply_in_form(w, tile, x, row, (form){rows, 8, 32, 0, 0}, next, out); break;
    case 5: multiply_in_form(w, tile, x, row, (form){rows, 8, 32, 1, 0}, next, out); break;
    case 6: multiply_in_form(w, tile, x, row, (form){rows, 8, 16, 0, 0}, next, out); break;
    default: multiply_in_form(w, tile, x, row, (form){rows, 8, 16, 1, 0}, next, out); break;
  }
}

// Of some rows from one on that is a multiple of TOGETHER. A row's result is the same whatever the
// others are: only how many share the weights differs.
static void multiply_tile(const phi3_matrix *w, tile_weights tile, const activations *x, int row,
                          int rows, coming next, float out[TOGETHER][PHI3_OUTPUTS]) {
  switch (rows) {
    case 1: multiply_counted(w, tile, x, row, 1, next, out); break;
    case 2: multiply_counted(w, tile, x, row, 2, next, out); break;
    case 3: multiply_counted(w, tile, x, row, 3, next, out); break;
    default: multiply_counted(w, tile, x, row, 4, next, out); break;
  }
}

// Weights of 4 bits, each in a byte: those of a unit and half of the outputs together, of each line
// first the lower halves of its bytes and then the upper ones.
static void unpack_tile(const uint8_t *tile, int inputs, int unit, uint8_t *restrict to) {
  enum { HALF = LINE_BYTES / HALVES };
  const int lines = unit / 8;
  for (int input = 0; input < inputs; input += unit, tile += LINE_BYTES * lines)
    for (int half = 0; half < HALVES; half++)
      for (int line = 0; line < lines; line++, to += 2 * HALF) {
        const uint8_t *from = tile + LINE_BYTES * line + HALF * half;
        for (int i = 0; i < HALF; i++) {
          to[i] = from[i] & 15;
          to[HALF + i] = from[i] >> 4;
        }
      }
}

// A tile for so many rows. There is room for its weights in bytes.
INLINE tile_weights prepare_tile(const phi3_matrix *w, int tile, const activations *x, int rows,
                                 uint8_t *unpacked) {
  const uint8_t *packed = w->tiles + layout_of(w).bytes * (size_t)tile;
  if (UNPACKED_FROM == 0 || rows < UNPACKED_FROM || w->bits != 4)
    return (tile_weights){packed, NULL};
  unpack_tile(packed, x->inputs, x->unit, unpacked);
  return (tile_weights){packed, unpacked};
}

#endif

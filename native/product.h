// Products of activations in 8 bits with weights in 4 or 8: of a tile and some rows that lie together.
// Included by step.c, which is compiled for one instruction set at a time.
#ifndef PHI3_PRODUCT_H
#define PHI3_PRODUCT_H

#include <string.h>

#include "model.h"
#include "vector.h"

enum { HALVES = PHI3_OUTPUTS / LANES };  // of a tile's outputs

typedef struct {
  int rows, bits, unit, zero_points;
} form;  // known to the compiler

// What is brought from memory meanwhile.
typedef struct {
  const uint8_t *at;
  ptrdiff_t bytes;
} coming;

// Each instruction set has
//   dot_products    adds the products of a unit of inputs of a tile with those of some rows
//   NAME_TEXT, is_here
#if defined(PHI3_VNNI)
#include "product_vnni.h"
#elif defined(PHI3_AVX2)
#include "product_avx2.h"
#else
#include "product_portable.h"
#endif

INLINE void multiply_digit(const phi3_matrix *w, const uint8_t *tile, const activations *x,
                           int digit, int row, const form f, coming next,
                           vec sums[TOGETHER][HALVES]) {
  const tile_layout layout = layout_of(w);
  const int units = x->inputs / f.unit, parts = w->block / f.unit;
  const size_t unit_bytes = (size_t)f.unit * PHI3_OUTPUTS * f.bits / 8;
  const size_t first = ((size_t)digit * x->rows + row) * units;
  const int8_t *values = x->values + first * f.unit;
  const float *x_scales = x->scales + first;
  const int32_t *offsets = x->offsets + first;
  const float *scales = (const float *)(tile + layout.scales);
  const uint8_t *zero_points = tile + layout.zero_points;
  // some lines with each unit: for many at once the processor would wait
  const ptrdiff_t share = (next.bytes / units + 63) / 64 * 64;
  for (int unit = 0; unit < units; scales += PHI3_OUTPUTS, zero_points += PHI3_OUTPUTS) {
    vec scale[HALVES], taken[HALVES];
    for (int half = 0; half < HALVES; half++) {
      scale[half] = load(scales + half * LANES);
      if (f.zero_points) taken[half] = scale[half] * load_bytes(zero_points + half * LANES);
    }
    for (int part = 0; part < parts && unit < units; part++, unit++) {
      ivec dots[TOGETHER][HALVES];
      for (int r = 0; r < f.rows; r++) {
        const int32_t middle = f.zero_points ? 0 : offsets[r] * (f.bits == 8 ? 16 : 1);
        for (int half = 0; half < HALVES; half++) dots[r][half] = (ivec){} + middle;
      }
      dot_products(tile, values, f, dots);
      if (next.bytes > 0) {
        for (ptrdiff_t i = 0; i < share; i += 64) __builtin_prefetch(next.at + i, 0, 2);
        next.at += share;
        next.bytes -= share;
      }
      for (int r = 0; r < f.rows; r++) {
        const float off = x_scales[r] * (float)offsets[r] * 0.125f;
        for (int half = 0; half < HALVES; half++) {
          vec dot = __builtin_convertvector(dots[r][half], vec);
          sums[r][half] = multiply_add(dot, scale[half] * x_scales[r], sums[r][half]);
          if (f.zero_points) sums[r][half] = multiply_add(taken[half], all(off), sums[r][half]);
        }
      }
      tile += unit_bytes;
      values += TOGETHER * f.unit;
      x_scales += TOGETHER;
      offsets += TOGETHER;
    }
  }
}

INLINE void multiply_in_form(const phi3_matrix *w, int tile, const activations *x, int row,
                             const form f, coming next, float out[TOGETHER][PHI3_OUTPUTS]) {
  const uint8_t *at = w->tiles + layout_of(w).bytes * (size_t)tile;
  vec sums[TOGETHER][HALVES] = {};
  for (int digit = 0; digit < x->digits; digit++) {
    multiply_digit(w, at, x, digit, row, f, next, sums);
    next.bytes = 0;
  }
  for (int r = 0; r < f.rows; r++)
    for (int half = 0; half < HALVES; half++) store(out[r] + half * LANES, sums[r][half]);
}

INLINE void multiply_counted(const phi3_matrix *w, int tile, const activations *x, int row,
                             const int rows, coming next, float out[TOGETHER][PHI3_OUTPUTS]) {
  switch ((w->bits == 8) * 4 + (x->unit == 16) * 2 + (w->zero_points != 0)) {
    case 0: multiply_in_form(w, tile, x, row, (form){rows, 4, 32, 0}, next, out); break;
    case 1: multiply_in_form(w, tile, x, row, (form){rows, 4, 32, 1}, next, out); break;
    case 2: multiply_in_form(w, tile, x, row, (form){rows, 4, 16, 0}, next, out); break;
    case 3: multiply_in_form(w, tile, x, row, (form){rows, 4, 16, 1}, next, out); break;
    case 4: multiply_in_form(w, tile, x, row, (form){rows, 8, 32, 0}, next, out); break;
    case 5: multiply_in_form(w, tile, x, row, (form){rows, 8, 32, 1}, next, out); break;
    case 6: multiply_in_form(w, tile, x, row, (form){rows, 8, 16, 0}, next, out); break;
    default: multiply_in_form(w, tile, x, row, (form){rows, 8, 16, 1}, next, out); break;
  }
}

// Of some rows from one on that is a multiple of TOGETHER. A row's result is the same whatever the
// others are: only how many share the weights differs.
static void multiply_tile(const phi3_matrix *w, int tile, const activations *x, int row, int rows,
                          coming next, float out[TOGETHER][PHI3_OUTPUTS]) {
  switch (rows) {
    case 1: multiply_counted(w, tile, x, row, 1, next, out); break;
    case 2: multiply_counted(w, tile, x, row, 2, next, out); break;
    case 3: multiply_counted(w, tile, x, row, 3, next, out); break;
    default: multiply_counted(w, tile, x, row, 4, next, out); break;
  }
}

#endif

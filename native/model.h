// What the parts of the library share: a model with all that it works with.
#ifndef PHI3_MODEL_H
#define PHI3_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "phi3.h"
#include "pool.h"

// Rows of activations rounded to 8 bits, for products. Four rows lie together, unit by unit, as they
// are multiplied: what is said of rows below is of as many fours. The second digit of a value, where
// there is one, is what the first has left of it.
typedef struct {
  int8_t *values;    // digits x fours x units x 4 x unit
  float *scales;     // digits x fours x units x 4
  int32_t *offsets;  // the same: -8 x the sum of the values, for weights from 0 to 15 around 8
  int32_t rows, inputs, digits, unit;
} activations;

enum { TOGETHER = 4, LINE_BYTES = 4 * PHI3_OUTPUTS };  // rows that lie together; of weights

// What one thread works with; that for attention is as large as ATTENTION_ROWS need.
typedef struct {
  float *sums;           // queries x head_size
  float *weights;        // queries x PHI3_BLOCK
  uint8_t *unpacked[2];  // tiles, as a product may want them
} thread_room;

enum { ATTENTION_ROWS = 16 };  // of a step that are attended for together

typedef struct phi3_instructions_of {
  const char *name;
  int (*is_here)(void);
  pool_work step;  // its argument is a step_of
} instruction_set;

struct phi3_model {
  phi3_shape shape;
  phi3_layer *layers;
  phi3_room room;
  const instruction_set *instructions;
  pool *pool;
  float *states;        // rows x hidden
  float *qkv;           // rows x (heads + 2 x key_value_heads) x head_size
  float *logits;        // wanted x outputs of the tiles of lm_head
  activations hidden, attention, mlp;
  thread_room *thread_rooms;
  char *work;           // all of the above in one piece
  size_t work_bytes;
  _Float16 *cache;      // layers x blocks x key_value_heads x {keys: head_size x 32, values: 32 x head_size}
  size_t cache_bytes;
};

typedef struct {
  phi3_model *model;
  const phi3_batch *batch;
  float *logits;
  int32_t *best;
  float *log_probability;
} step_of;

static inline int32_t tiles_of(const phi3_matrix *w) {
  return (w->outputs + PHI3_OUTPUTS - 1) / PHI3_OUTPUTS;
}

static inline int32_t blocks_of(const phi3_matrix *w) {
  return (w->inputs + w->block - 1) / w->block;
}

// A tile has the weights of 32 outputs, as the instructions for products of 8 bits read them: four
// inputs of an output side by side, 32 outputs to a line. In 4 bits a line holds two of these, the
// first in the lower halves of its bytes. After all weights come the scales, those of 32 outputs for
// each block; and where there are zero points, these likewise, one in a byte.
typedef struct {
  size_t scales, zero_points, bytes;  // where they begin, and where the tile ends
} tile_layout;

static inline tile_layout layout_of(const phi3_matrix *w) {
  const size_t blocks = (size_t)blocks_of(w), line = 64;
  const size_t scales = blocks * w->block * PHI3_OUTPUTS * w->bits / 8;
  const size_t zero_points = scales + blocks * PHI3_OUTPUTS * sizeof(float);
  const size_t end = zero_points + (w->zero_points ? blocks * PHI3_OUTPUTS : 0);
  return (tile_layout){scales, zero_points, (end + line - 1) / line * line};
}

extern const instruction_set vnni_instructions, avx2_instructions, portable_instructions;

#endif

// Models of random weights, of every form that there is, read by every instruction set of this
// processor: whole on one thread, and in parts on several, beside another text that begins alike, and
// on from a copied block.
// The logits must be the same bit by bit. Run under sanitizers: `make sanitize`.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../phi3.h"

enum {
  LAYERS = 2,
  HIDDEN = 96,
  INTERMEDIATE = 160,
  HEADS = 4,
  HEAD_SIZE = 32,
  VOCABULARY = 71,
  POSITIONS = 100,
  BLOCKS = 9,
  TOKENS = 75,
  SHARED = 2 * PHI3_BLOCK,  // tokens of an equal beginning
  ROWS = 48,
};

typedef struct {
  int bits, block, zero_points, digits, window, fused, key_value_heads, tied;
} form;

static const form forms[] = {
    {4, 32, 0, 1, 0, 1, 4, 0},  {4, 32, 1, 2, 0, 1, 2, 0},   {4, 16, 1, 1, 0, 0, 1, 0},
    {4, 64, 0, 1, 20, 1, 2, 0}, {8, 32, 0, 1, 0, 1, 4, 1},   {8, 16, 1, 2, 33, 0, 2, 0},
    {4, 16, 0, 2, 0, 1, 4, 0},  {8, 128, 1, 1, 0, 1, 2, 0},  {4, 256, 1, 1, 0, 1, 2, 1},
};

static uint64_t state = 88172645463325252u;
static void *kept[4096];
static int kept_count;

// Marsaglia's xorshift
static uint32_t random_number(void) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (uint32_t)(state >> 32);
}

// Each in memory of its own and of its own size: one byte beyond it is seen.
static void *take(size_t bytes) {
  void *at = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!at) abort();
  return kept[kept_count++] = at;
}

static float *floats(int count, float middle, float spread) {
  float *at = take((size_t)count * sizeof(float));
  for (int i = 0; i < count; i++)
    at[i] = middle + spread * ((float)(random_number() % 2001) / 1000.0f - 1.0f);
  return at;
}

static phi3_matrix matrix(const form *f, int outputs, int inputs) {
  phi3_matrix w = {NULL, outputs, inputs, f->bits, f->block, f->zero_points};
  const int blocks = (inputs + f->block - 1) / f->block;
  const size_t bytes = (size_t)outputs * blocks * f->block * f->bits / 8;
  const size_t points = (size_t)outputs * ((blocks * f->bits + 7) / 8);
  uint8_t *weights = malloc(bytes), *zero_points = malloc(points), *packed;
  float *scales = malloc(sizeof(float) * (size_t)outputs * blocks);
  if (!weights || !zero_points || !scales) abort();
  for (size_t i = 0; i < bytes; i++) weights[i] = (uint8_t)random_number();
  for (size_t i = 0; i < points; i++) zero_points[i] = (uint8_t)random_number();
  for (int i = 0; i < outputs * blocks; i++)
    scales[i] = (float)(1 + random_number() % 100) / (float)(500 << (f->bits - 4));
  packed = take((size_t)phi3_packed_size(&w));
  phi3_pack(&w, weights, scales, f->zero_points ? zero_points : NULL, packed);
  free(weights), free(zero_points), free(scales);
  w.tiles = packed;
  return w;
}

static phi3_shape random_shape(const form *f, phi3_layer *layers) {
  const int own = HEADS * HEAD_SIZE, shared = f->key_value_heads * HEAD_SIZE;
  for (int i = 0; i < LAYERS; i++) {
    phi3_layer *l = &layers[i];
    memset(l, 0, sizeof *l);
    l->attention_norm = floats(HIDDEN, 1, 0.3f);
    l->mlp_norm = floats(HIDDEN, 1, 0.3f);
    l->qkv[0] = matrix(f, f->fused ? own + 2 * shared : own, HIDDEN);
    if (!f->fused) l->qkv[1] = matrix(f, shared, HIDDEN), l->qkv[2] = matrix(f, shared, HIDDEN);
    l->o = matrix(f, HIDDEN, own);
    l->gate = matrix(f, INTERMEDIATE, HIDDEN);
    l->up = matrix(f, INTERMEDIATE, HIDDEN);
    l->down = matrix(f, HIDDEN, INTERMEDIATE);
    l->window = f->window;
  }
  phi3_shape s = {
      .layers = LAYERS,
      .hidden = HIDDEN,
      .intermediate = INTERMEDIATE,
      .heads = HEADS,
      .key_value_heads = f->key_value_heads,
      .head_size = HEAD_SIZE,
      .vocabulary = VOCABULARY,
      .half_rotary = 12,
      .unit = f->block == 16 ? 16 : 32,
      .digits = f->digits,
      .epsilon = 1e-5f,
      .attention_scale = 0.17f,
      .layer = layers,
      .embedding = f->tied ? NULL : floats(VOCABULARY * HIDDEN, 0, 1),
      .norm = floats(HIDDEN, 1, 0.3f),
      .lm_head = matrix(f, VOCABULARY, HIDDEN),
  };
  for (int table = 0; table < PHI3_TABLES; table++) {
    s.positions[table] = POSITIONS;
    s.cos[table] = floats(POSITIONS * s.half_rotary, 0, 1);
    s.sin[table] = floats(POSITIONS * s.half_rotary, 0, 1);
  }
  return s;
}

typedef struct {
  int length, read;
  int32_t tokens[TOKENS], blocks[(TOKENS + PHI3_BLOCK - 1) / PHI3_BLOCK];
  float logits[TOKENS * VOCABULARY];
} text;

// Read some tokens of each text in one step.
static int read_texts(phi3_model *model, text **texts, const int *counts, int n) {
  enum { LENGTH = sizeof texts[0]->blocks / sizeof *texts[0]->blocks };
  int32_t tokens[ROWS], positions[ROWS], sequences[ROWS], wanted[ROWS], tables[3 * LENGTH];
  int32_t best[ROWS];
  uint8_t rotary[3] = {0, 1, 0};
  float log_probability[ROWS], *logits = malloc(sizeof(float) * ROWS * VOCABULARY);
  int rows = 0;
  for (int i = 0; i < n; i++) {
    memcpy(tables + i * LENGTH, texts[i]->blocks, sizeof texts[i]->blocks);
    for (int k = 0; k < counts[i]; k++, rows++) {
      tokens[rows] = texts[i]->tokens[texts[i]->read + k];
      positions[rows] = texts[i]->read + k;
      sequences[rows] = i;
      wanted[rows] = rows;
    }
  }
  const phi3_batch batch = {rows,   tokens, positions, sequences, tables,
                            LENGTH, rotary, rows,      wanted};
  int failed = phi3_step(model, &batch, logits, best, log_probability);
  for (int i = 0, row = 0; i < n; row += counts[i], texts[i]->read += counts[i], i++)
    memcpy(texts[i]->logits + (size_t)texts[i]->read * VOCABULARY, logits + (size_t)row * VOCABULARY,
           sizeof(float) * VOCABULARY * (size_t)counts[i]);
  free(logits);
  return failed;
}

static text new_text(int first_block, int salt) {
  text t = {.length = TOKENS};
  for (int i = 0; i < TOKENS; i++) t.tokens[i] = (7 * i + (i < SHARED ? 0 : salt)) % VOCABULARY;
  for (int i = 0; i < (int)(sizeof t.blocks / sizeof *t.blocks); i++) t.blocks[i] = first_block + i;
  return t;
}

static int check(const form *f, const char *instructions) {
  phi3_layer layers[LAYERS];
  phi3_shape shape = random_shape(f, layers);
  phi3_model *alone, *together;
  const phi3_room little = {1, ROWS, ROWS, BLOCKS}, room = {3, ROWS, ROWS, BLOCKS};
  int failed = phi3_create(&shape, &little, instructions, &alone) ||
               phi3_create(&shape, &room, instructions, &together);
  if (failed) return failed;
  text whole = new_text(4, 1), first = new_text(0, 2), second = new_text(3, 1);
  text *one[] = {&whole}, *two[] = {&first, &second};
  failed |= read_texts(alone, one, (int[]){40}, 1);
  failed |= read_texts(alone, one, (int[]){TOKENS - 40}, 1);
  // the first reads what both begin with, and the second goes on from there
  failed |= read_texts(together, two, (int[]){33}, 1);
  failed |= read_texts(together, two, (int[]){SHARED - 33 + 1}, 1);
  memcpy(second.blocks, first.blocks, sizeof(int32_t) * SHARED / PHI3_BLOCK);
  second.read = SHARED;
  for (int left = TOKENS - SHARED; left > 1; left -= 2)
    failed |= read_texts(together, (text *[]){&first, &whole, &second}, (int[]){1, 0, 2}, 3);
  const size_t own = (size_t)SHARED * VOCABULARY, read = (size_t)(second.read - SHARED);
  failed |= memcmp(whole.logits + own, second.logits + own, sizeof(float) * VOCABULARY * read) != 0;
  // another goes on from the middle of a block that was copied
  text other = whole;
  const int last = SHARED / PHI3_BLOCK, begun = SHARED + 4;
  other.blocks[last] = BLOCKS - 1, other.read = begun;
  failed |= phi3_copy_block(alone, whole.blocks[last], other.blocks[last]);
  memset(other.logits, 0, sizeof other.logits);
  failed |= read_texts(alone, (text *[]){&other}, (int[]){TOKENS - begun}, 1);
  const size_t from = (size_t)begun * VOCABULARY, rest = (size_t)(TOKENS - begun) * VOCABULARY;
  failed |= memcmp(whole.logits + from, other.logits + from, sizeof(float) * rest) != 0;
  failed |= !phi3_copy_block(alone, -1, 0) || !phi3_copy_block(alone, 0, BLOCKS);
  phi3_free(alone);
  phi3_free(together);
  while (kept_count) free(kept[--kept_count]);
  return failed;
}

int main(void) {
  const int count = sizeof forms / sizeof *forms;
  const char *name;
  for (int i = 0; (name = phi3_instructions(i)); i++)
    for (int k = 0; k < count; k++)
      if (check(&forms[k], name)) {
        printf("form %d by %s: logits differ, or a step was refused\n", k, name);
        return 1;
      }
  printf("%d forms\n", count);
  return 0;
}

// A step of the model, once for each instruction set: the compiler is told which, and
// INSTRUCTIONS names it.
#include <math.h>

#include "model.h"
#include "product.h"
#include "vector.h"

#define JOIN(a, b) a##b
#define NAME(a) JOIN(a, _instructions)

typedef struct {
  phi3_model *model;
  const phi3_shape *shape;
  const phi3_batch *batch;
  pool *pool;
  int thread;
} context;

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

// Activations

// Round 16 or 32 values to 8 bits. No number stays none: it makes the scale none.
INLINE void round_unit(activations *to, int row, int unit, const vec *x, const int vecs) {
  typedef int8_t bytes __attribute__((vector_size(16)));
  vec left[2], largest = {}, unsound = {};
  for (int i = 0; i < vecs; i++) {
    left[i] = x[i];
    largest = __builtin_elementwise_max(largest, __builtin_elementwise_abs(x[i]));
    unsound += x[i] * 0.0f;
  }
  float most = largest_of(largest), scale = most / 127.0f + sum_of(unsound);
  for (int digit = 0; digit < to->digits; digit++) {
    const size_t units = (size_t)(to->inputs / to->unit), four = (size_t)(row / TOGETHER);
    size_t at = (size_t)digit * to->rows * units + (four * units + unit) * TOGETHER + row % TOGETHER;
    int8_t *values = to->values + at * vecs * LANES;
    const vec factor = all(most > 0 ? 1.0f / scale : 0.0f);
    ivec sum = {};
    for (int i = 0; i < vecs; i++) {
      const vec whole = round_to_even(left[i] * factor);
      const ivec numbers = __builtin_convertvector(whole, ivec);
      const bytes narrow = __builtin_convertvector(numbers, bytes);
      memcpy(values + i * LANES, &narrow, sizeof narrow);
      sum += numbers;
      left[i] = multiply_add(whole, all(-scale), left[i]);
    }
    to->scales[at] = scale;
    to->offsets[at] = -8 * __builtin_reduce_add(sum);
    scale /= 254.0f;  // what is left of a value is half a unit at most
  }
}

// Round 32 values, of one unit or of two.
INLINE void round_values(activations *to, int row, int first, vec a, vec b) {
  const vec x[2] = {a, b};
  if (to->unit == 2 * LANES) {
    round_unit(to, row, first / (2 * LANES), x, 2);
  } else {
    round_unit(to, row, first / LANES, x, 1);
    round_unit(to, row, first / LANES + 1, x + 1, 1);
  }
}

// https://arxiv.org/abs/1910.07467, rounded for a product
static void normalize(const phi3_shape *shape, const float *x, const float *weight, activations *to,
                      int row) {
  vec squares[2] = {{}, {}};
  for (int i = 0; i < shape->hidden; i += 2 * LANES)
    for (int j = 0; j < 2; j++) {
      vec v = load(x + i + j * LANES);
      squares[j] = multiply_add(v, v, squares[j]);
    }
  float mean = sum_of(squares[0] + squares[1]) / (float)shape->hidden;
  vec factor = all(1.0f / __builtin_sqrtf(mean + shape->epsilon));
  for (int i = 0; i < shape->hidden; i += 2 * LANES)
    round_values(to, row, i, load(x + i) * factor * load(weight + i),
                 load(x + i + LANES) * factor * load(weight + i + LANES));
}

static void normalize_rows(const context *c, const float *weight) {
  phi3_model *m = c->model;
  for (int row; (row = pool_take(c->pool, c->batch->rows)) < c->batch->rows;)
    normalize(c->shape, m->states + (size_t)row * c->shape->hidden, weight, &m->hidden, row);
  pool_wait(c->pool);
}

// Products. A piece of work is some tiles of a matrix and a panel of rows, whose activations stay
// in the second cache meanwhile.

enum { PANEL_BYTES = 512 * 1024 };

typedef struct {
  int panel, panels, group, groups;  // rows and tiles of a piece, and how many there are of each
} pieces;

static pieces share_out(const context *c, int rows, int inputs, int tiles) {
  int panel = most(TOGETHER, PANEL_BYTES / inputs / TOGETHER * TOGETHER);
  int panels = (rows + panel - 1) / panel;
  int group = most(1, least(8, tiles * panels / (8 * pool_threads(c->pool))));
  return (pieces){panel, panels, group, (tiles + group - 1) / group};
}

// Rows and tiles of a piece that nobody has taken; false where there is none left.
typedef struct {
  int from, to, first, end;
} piece;

INLINE int take_piece(const context *c, pieces p, int rows, int tiles, piece *taken) {
  const int items = p.panels * p.groups, item = pool_take(c->pool, items);
  if (item >= items) return 0;
  const int from = item / p.groups * p.panel, first = item % p.groups * p.group;
  *taken = (piece){from, least(rows, from + p.panel), first, least(tiles, first + p.group)};
  return 1;
}

// What of the next tile is brought from memory while some rows of a panel are multiplied with one:
// their share of it, so that all of it is there in time, and the processor waits for none.
INLINE coming next_of(const phi3_matrix *w, int tile, int row, int from, int to) {
  const ptrdiff_t bytes = (ptrdiff_t)layout_of(w).bytes, rows = to - from;
  if (tile + 1 >= tiles_of(w) || rows <= 2) return (coming){0};
  const uint8_t *next = w->tiles + bytes * (tile + 1);
  return (coming){next + bytes * (row - from) / rows, bytes * TOGETHER / rows};
}

// y = x W^T, or y += x W^T
INLINE void multiply_rows(const context *c, const phi3_matrix *w, const activations *x, int rows,
                          float *y, int width, int adds) {
  const int tiles = tiles_of(w);
  const pieces p = share_out(c, rows, w->inputs, tiles);
  uint8_t *place = c->model->thread_rooms[c->thread].unpacked[0];
  float out[TOGETHER][PHI3_OUTPUTS];
  for (piece t; take_piece(c, p, rows, tiles, &t);)
    for (int tile = t.first; tile < t.end; tile++) {
      const tile_weights weights = prepare_tile(w, tile, x, t.to - t.from, place);
      for (int row = t.from; row < t.to; row += TOGETHER) {
        const int count = least(TOGETHER, t.to - row);
        multiply_tile(w, weights, x, row, count, next_of(w, tile, row, t.from, t.to), out);
        for (int r = 0; r < count; r++) {
          float *at = y + (size_t)(row + r) * width + tile * PHI3_OUTPUTS;
          for (int half = 0; half < HALVES; half++, at += LANES) {
            const vec v = load(out[r] + half * LANES);
            store(at, adds ? load(at) + v : v);
          }
        }
      }
    }
  pool_wait(c->pool);
}

// silu(x gate^T) * (x up^T), rounded for the next product
static void gate_rows(const context *c, const phi3_layer *layer) {
  phi3_model *m = c->model;
  const int tiles = tiles_of(&layer->gate), rows = c->batch->rows;
  const pieces p = share_out(c, rows, c->shape->hidden, tiles);
  uint8_t *const *places = m->thread_rooms[c->thread].unpacked;
  float gate[TOGETHER][PHI3_OUTPUTS], up[TOGETHER][PHI3_OUTPUTS];
  for (piece t; take_piece(c, p, rows, tiles, &t);)
    for (int tile = t.first; tile < t.end; tile++) {
      const int all_rows = t.to - t.from;
      const tile_weights of_gate = prepare_tile(&layer->gate, tile, &m->hidden, all_rows, places[0]);
      const tile_weights of_up = prepare_tile(&layer->up, tile, &m->hidden, all_rows, places[1]);
      for (int row = t.from; row < t.to; row += TOGETHER) {
        const int count = least(TOGETHER, t.to - row);
        coming next = next_of(&layer->gate, tile, row, t.from, t.to);
        multiply_tile(&layer->gate, of_gate, &m->hidden, row, count, next, gate);
        next = next_of(&layer->up, tile, row, t.from, t.to);
        multiply_tile(&layer->up, of_up, &m->hidden, row, count, next, up);
        for (int r = 0; r < count; r++) {
          vec v[HALVES];
          for (int half = 0; half < HALVES; half++) {
            const vec x = load(gate[r] + half * LANES);
            v[half] = x / (1.0f + exp_of(-x)) * load(up[r] + half * LANES);
          }
          round_values(&m->mlp, row + r, tile * PHI3_OUTPUTS, v[0], v[1]);
        }
      }
    }
  pool_wait(c->pool);
}

// Attention

// Where a layer has the keys of a head in a block of the KV cache; its values follow.
INLINE _Float16 *keys_at(const phi3_model *m, int layer, int block, int head) {
  const phi3_shape *s = &m->shape;
  size_t at = ((size_t)layer * m->room.blocks + block) * s->key_value_heads + head;
  return m->cache + at * 2 * PHI3_BLOCK * s->head_size;
}

INLINE const int32_t *block_table(const phi3_batch *b, int row) {
  return b->block_tables + (size_t)b->sequences[row] * b->table_length;
}

// Rotate pairs of values, the first of a pair in the first half.
// https://arxiv.org/abs/2104.09864, as Llama and Phi-3 pair them
static void rotate(const phi3_shape *s, float *x, const float *cos, const float *sin) {
  for (int i = 0; i < s->half_rotary; i++) {
    float a = x[i], b = x[i + s->half_rotary];
    x[i] = a * cos[i] - b * sin[i];
    x[i + s->half_rotary] = b * cos[i] + a * sin[i];
  }
}

// Rotate queries and keys, and put keys and values into the cache.
static void remember_rows(const context *c, int layer) {
  phi3_model *m = c->model;
  const phi3_shape *s = c->shape;
  const phi3_batch *b = c->batch;
  const int heads = s->key_value_heads, group = s->heads / heads, size = s->head_size;
  const int width = (s->heads + 2 * heads) * size, items = b->rows * heads;
  for (int item; (item = pool_take(c->pool, items)) < items;) {
    int row = item / heads, head = item % heads, position = b->positions[row];
    int table = b->tables[b->sequences[row]];
    const float *cos = s->cos[table] + (size_t)position * s->half_rotary;
    const float *sin = s->sin[table] + (size_t)position * s->half_rotary;
    float *q = m->qkv + (size_t)row * width + (size_t)head * group * size;
    for (int g = 0; g < group; g++, q += size) {
      rotate(s, q, cos, sin);
      for (int i = 0; i < size; i += LANES) store(q + i, load(q + i) * s->attention_scale);
    }
    float *k = m->qkv + (size_t)row * width + (size_t)(s->heads + head) * size;
    const float *v = k + (size_t)heads * size;
    rotate(s, k, cos, sin);
    int place = position % PHI3_BLOCK;
    _Float16 *keys = keys_at(m, layer, block_table(b, row)[position / PHI3_BLOCK], head);
    _Float16 *values = keys + (size_t)(PHI3_BLOCK + place) * size;
    for (int i = 0; i < size; i++) keys[(size_t)i * PHI3_BLOCK + place] = (_Float16)k[i];
    for (int i = 0; i < size; i += LANES) store_halves(values + i, load(v + i));
  }
  pool_wait(c->pool);
}

// One head of one row: what it has seen so far.
typedef struct {
  const float *q;
  float *sum, *weights;
  float largest, total;
  int first, count;  // tokens of the current block that it attends to
} query;

enum { QUERIES = 4 };

// Attend to a block of keys and values, by `n` queries at most QUERIES. What comes next is brought
// from memory meanwhile. Each sum has two parts, so that an addition need not wait for the last; there
// are as many at once as there are registers for.
// Softmax as it goes: https://arxiv.org/abs/1805.02867
INLINE void attend_block(query **queries, const int n, const _Float16 *keys, int size,
                         const _Float16 *next) {
  const _Float16 *values = keys + (size_t)PHI3_BLOCK * size;
  const int halves = SUMS >= 2 * n ? 2 : 1, parts = SUMS >= 2 * n * halves ? 2 : 1;
  vec scores[QUERIES][2] = {};
  for (int half = 0; half < 2; half += halves)
    for (int part = 0; part < 2; part += parts) {
      vec sums[2][QUERIES][2] = {};
      for (int i = part; i < size; i += 2)
        for (int p = 0; p < parts; p++) {
          const _Float16 *at = keys + (size_t)(i + p) * PHI3_BLOCK + half * LANES;
          if (half == 0) __builtin_prefetch(next + (size_t)(i + p) * PHI3_BLOCK, 0, 2);
          vec key[2];
          for (int h = 0; h < halves; h++) key[h] = load_halves(at + h * LANES);
          for (int k = 0; k < n; k++)
            for (int h = 0; h < halves; h++)
              sums[p][k][h] = multiply_add(key[h], all(queries[k]->q[i + p]), sums[p][k][h]);
        }
      for (int k = 0; k < n; k++)
        for (int p = 0; p < parts; p++)
          for (int h = 0; h < halves; h++) scores[k][half + h] += sums[p][k][h];
    }
  const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  int end = 0;
  vec kept[QUERIES];
  for (int k = 0; k < n; k++) {
    query *q = queries[k];
    for (int half = 0; half < 2; half++) {
      ivec place = lanes + half * LANES;
      ivec seen = (place >= q->first) & (place < q->count);
      ivec bits, none = (ivec){} + (int32_t)0xff800000;  // minus infinity
      memcpy(&bits, &scores[k][half], sizeof bits);
      bits = (bits & seen) | (none & ~seen);
      memcpy(&scores[k][half], &bits, sizeof bits);
    }
    float largest = largest_of(__builtin_elementwise_max(scores[k][0], scores[k][1]));
    largest = largest > q->largest ? largest : q->largest;
    float factor = q->total > 0 ? exp_of(all(q->largest - largest))[0] : 0.0f;
    vec sum = {};
    for (int half = 0; half < 2; half++) {
      vec weight = exp_of(scores[k][half] - largest);
      // what is not seen would be a little above 0
      ivec place = lanes + half * LANES;
      ivec seen = (place >= q->first) & (place < q->count), bits;
      memcpy(&bits, &weight, sizeof bits);
      bits &= seen;
      memcpy(&weight, &bits, sizeof bits);
      store(q->weights + half * LANES, weight);
      sum += weight;
    }
    q->largest = largest;
    q->total = q->total * factor + sum_of(sum);
    kept[k] = all(factor);
    end = most(end, q->count);
  }
  for (int i = 0; i < size; i += halves * LANES) {
    vec total[QUERIES][2] = {};
    for (int part = 0; part < 2; part += parts) {
      vec sums[2][QUERIES][2] = {};
      for (int t = part; t < end; t += 2)
        for (int p = 0; p < parts; p++) {
          // of an odd number the last is added with a weight of 0: beyond it might be anything
          const int token = t + p < end ? t + p : t;
          const _Float16 *at = values + (size_t)token * size + i;
          __builtin_prefetch(next + (size_t)(PHI3_BLOCK + token) * size + i, 0, 2);
          vec value[2];
          for (int h = 0; h < halves; h++) value[h] = load_halves(at + h * LANES);
          for (int k = 0; k < n; k++) {
            const vec weight = all(t + p < end ? queries[k]->weights[token] : 0.0f);
            for (int h = 0; h < halves; h++)
              sums[p][k][h] = multiply_add(value[h], weight, sums[p][k][h]);
          }
        }
      for (int k = 0; k < n; k++)
        for (int p = 0; p < parts; p++)
          for (int h = 0; h < halves; h++) total[k][h] += sums[p][k][h];
    }
    for (int k = 0; k < n; k++)
      for (int h = 0; h < halves; h++) {
        float *sum = queries[k]->sum + i + h * LANES;
        store(sum, multiply_add(load(sum), kept[k], total[k][h]));
      }
  }
}

static void attend_queries(query **queries, int n, const _Float16 *keys, int size,
                           const _Float16 *next) {
  for (; n >= 4; n -= 4, queries += 4) attend_block(queries, 4, keys, size, next);
  if (n >= 2) {
    attend_block(queries, 2, keys, size, next);
    n -= 2, queries += 2;
  }
  if (n) attend_block(queries, 1, keys, size, next);
}

// Attend for neighbouring rows by the heads that share one of keys and values. A block that several
// rows have, of one prompt or of an equal beginning, is read once for them.
static void attend_group(const context *c, int layer, int head, int from, int to) {
  phi3_model *m = c->model;
  const phi3_shape *s = c->shape;
  const phi3_batch *b = c->batch;
  const int group = s->heads / s->key_value_heads, size = s->head_size;
  const int width = (s->heads + 2 * s->key_value_heads) * size;
  const int window = c->shape->layer[layer].window;
  thread_room *room = &m->thread_rooms[c->thread];
  query all_queries[ATTENTION_ROWS * group];
  query *together[ATTENTION_ROWS * group];
  int start = INT32_MAX, last = 0;
  for (int row = from; row < to; row++) {
    int position = b->positions[row];
    start = least(start, window ? most(0, position - window + 1) : 0);
    last = most(last, position);
    for (int g = 0; g < group; g++) {
      int i = (row - from) * group + g;
      all_queries[i] = (query){
          .q = m->qkv + (size_t)row * width + (size_t)(head * group + g) * size,
          .sum = room->sums + (size_t)i * size,
          .weights = room->weights + (size_t)i * PHI3_BLOCK,
          .largest = -INFINITY,
      };
      memset(all_queries[i].sum, 0, sizeof(float) * (size_t)size);
    }
  }
  for (int place = start / PHI3_BLOCK; place <= last / PHI3_BLOCK; place++) {
    int count = 0, block = -1;
    const _Float16 *next = NULL;
    for (int row = from; row < to; row++) {
      int position = b->positions[row] - place * PHI3_BLOCK;
      int first = window ? most(0, position - window + 1) : 0;
      if (position < 0 || first >= PHI3_BLOCK) continue;
      const int32_t *own = block_table(b, row) + place;
      if (*own != block && count) {
        attend_queries(together, count, keys_at(m, layer, block, head), size, next);
        count = 0;
      }
      block = *own;
      next = keys_at(m, layer, position < PHI3_BLOCK ? block : own[1], head);
      for (int g = 0; g < group; g++) {
        query *q = &all_queries[(row - from) * group + g];
        q->first = first;
        q->count = least(PHI3_BLOCK, position + 1);
        together[count++] = q;
      }
    }
    if (count) attend_queries(together, count, keys_at(m, layer, block, head), size, next);
  }
  for (int row = from; row < to; row++)
    for (int g = 0; g < group; g++) {
      query *q = &all_queries[(row - from) * group + g];
      vec factor = all(1.0f / q->total);
      int at = (head * group + g) * size;
      for (int i = 0; i < size; i += 2 * LANES)
        round_values(&m->attention, row, at + i, load(q->sum + i) * factor,
                     load(q->sum + i + LANES) * factor);
    }
}

static void attend_rows(const context *c, int layer) {
  const int heads = c->shape->key_value_heads, rows = c->batch->rows;
  const int groups = (rows + ATTENTION_ROWS - 1) / ATTENTION_ROWS, items = groups * heads;
  for (int item; (item = pool_take(c->pool, items)) < items;) {
    int from = item / heads * ATTENTION_ROWS;
    attend_group(c, layer, item % heads, from, least(rows, from + ATTENTION_ROWS));
  }
  pool_wait(c->pool);
}

// The ends of a step

// The weights of one output of a matrix, as numbers.
static void unpack_output(const phi3_matrix *w, int output, float *to) {
  const tile_layout layout = layout_of(w);
  const uint8_t *tile = w->tiles + layout.bytes * (size_t)(output / PHI3_OUTPUTS);
  const int lane = output % PHI3_OUTPUTS;
  for (int i = 0; i < w->inputs; i++) {
    const size_t line = (size_t)(w->bits == 8 ? i / 4 : i / 8) * LINE_BYTES;
    const int shift = w->bits == 8 ? 0 : i / 4 % 2 * 4;
    const int number = tile[line + 4 * lane + i % 4] >> shift & (w->bits == 8 ? 255 : 15);
    const size_t at = (size_t)(i / w->block) * PHI3_OUTPUTS + lane;
    const int zero = w->zero_points ? tile[layout.zero_points + at] : w->bits == 8 ? 128 : 8;
    to[i] = ((const float *)(tile + layout.scales))[at] * (float)(number - zero);
  }
}

static void read_embeddings(const context *c) {
  const size_t hidden = (size_t)c->shape->hidden;
  for (int row; (row = pool_take(c->pool, c->batch->rows)) < c->batch->rows;) {
    float *to = c->model->states + row * hidden;
    const int token = c->batch->tokens[row];
    if (c->shape->embedding)
      memcpy(to, c->shape->embedding + token * hidden, hidden * sizeof(float));
    else
      unpack_output(&c->shape->lm_head, token, to);
  }
  pool_wait(c->pool);
}

static void normalize_wanted(const context *c) {
  for (int i; (i = pool_take(c->pool, c->batch->wanted_rows)) < c->batch->wanted_rows;)
    normalize(c->shape, c->model->states + (size_t)c->batch->wanted[i] * c->shape->hidden,
              c->shape->norm, &c->model->hidden, i);
  pool_wait(c->pool);
}

static void choose_tokens(const context *c, const step_of *step) {
  const int vocabulary = c->shape->vocabulary, items = c->batch->wanted_rows;
  const size_t width = (size_t)tiles_of(&c->shape->lm_head) * PHI3_OUTPUTS;
  for (int item; (item = pool_take(c->pool, items)) < items;) {
    float *logits = c->model->logits + (size_t)item * width;
    if (step->logits)
      memcpy(step->logits + (size_t)item * vocabulary, logits, sizeof(float) * (size_t)vocabulary);
    // tiles may have more outputs than there are tokens: those are out of the question
    for (int i = vocabulary; i < (int)width; i++) logits[i] = -INFINITY;
    vec largest = load(logits), total = {}, unsound = {};
    for (size_t i = LANES; i < width; i += LANES)
      largest = __builtin_elementwise_max(largest, load(logits + i));
    float top = largest_of(largest);
    int best = 0;
    while (best < vocabulary - 1 && logits[best] != top) best++;
    for (size_t i = 0; i < width; i += LANES) total += exp_of(load(logits + i) - top);
    for (int i = 0; i + LANES <= vocabulary; i += LANES) unsound += load(logits + i) * 0.0f;
    step->best[item] = best;
    step->log_probability[item] = -logf(sum_of(total)) + sum_of(unsound);
  }
  pool_wait(c->pool);
}

static void step(pool *pool, int thread, void *argument) {
  const step_of *step = argument;
  phi3_model *m = step->model;
  const phi3_shape *s = &m->shape;
  const context c = {m, s, step->batch, pool, thread};
  const int rows = step->batch->rows, width = (s->heads + 2 * s->key_value_heads) * s->head_size;
  read_embeddings(&c);
  for (int layer = 0; layer < s->layers; layer++) {
    const phi3_layer *l = &s->layer[layer];
    normalize_rows(&c, l->attention_norm);
    for (int part = 0, at = 0; part < 3; at += l->qkv[part].outputs, part++)
      if (l->qkv[part].outputs)
        multiply_rows(&c, &l->qkv[part], &m->hidden, rows, m->qkv + at, width, 0);
    remember_rows(&c, layer);
    attend_rows(&c, layer);
    multiply_rows(&c, &l->o, &m->attention, rows, m->states, s->hidden, 1);
    normalize_rows(&c, l->mlp_norm);
    gate_rows(&c, l);
    multiply_rows(&c, &l->down, &m->mlp, rows, m->states, s->hidden, 1);
  }
  if (!step->batch->wanted_rows) return;
  normalize_wanted(&c);
  multiply_rows(&c, &s->lm_head, &m->hidden, step->batch->wanted_rows, m->logits,
                tiles_of(&s->lm_head) * PHI3_OUTPUTS, 0);
  choose_tokens(&c, step);
}

const instruction_set NAME(INSTRUCTIONS) = {NAME_TEXT, is_here, step};

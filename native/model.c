// Making a model, and checking what it is asked for.
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const instruction_set *const sets[] = {
#if defined(__x86_64__)
    &vnni_instructions,
    &avx2_instructions,
#endif
    &portable_instructions,
};

enum { SETS = sizeof sets / sizeof *sets, LINE = 64 };

const char *phi3_instructions(int place) {
  for (int i = 0; i < SETS; i++)
    if (sets[i]->is_here() && place-- == 0) return sets[i]->name;
  return NULL;
}

static const instruction_set *find_set(const char *name) {
  for (int i = 0; i < SETS; i++)
    if (!strcmp(sets[i]->name, name) && sets[i]->is_here()) return sets[i];
  return NULL;
}

// Shapes

static int is_matrix(const phi3_shape *s, const phi3_matrix *w, int outputs, int inputs) {
  return w->tiles && w->block % s->unit == 0 && phi3_packed_size(w) > 0 && w->outputs == outputs && w->inputs == inputs;
}

static int is_layer(const phi3_shape *s, const phi3_layer *l) {
  const int own = s->heads * s->head_size, shared = s->key_value_heads * s->head_size;
  const phi3_matrix *qkv = l->qkv;
  int apart = qkv[1].outputs > 0;
  return l->attention_norm && l->mlp_norm && l->window >= 0 &&
         is_matrix(s, &qkv[0], apart ? own : own + 2 * shared, s->hidden) &&
         (apart ? is_matrix(s, &qkv[1], shared, s->hidden) && is_matrix(s, &qkv[2], shared, s->hidden)
                : qkv[2].outputs == 0) &&
         is_matrix(s, &l->o, s->hidden, own) && is_matrix(s, &l->gate, s->intermediate, s->hidden) &&
         is_matrix(s, &l->up, s->intermediate, s->hidden) &&
         is_matrix(s, &l->down, s->hidden, s->intermediate);
}

static int is_shape(const phi3_shape *s) {
  if (s->layers < 1 || s->hidden < PHI3_INPUTS || s->hidden % PHI3_INPUTS ||
      s->intermediate < PHI3_INPUTS || s->intermediate % PHI3_INPUTS || s->key_value_heads < 1 ||
      s->heads < 1 || s->heads % s->key_value_heads || s->head_size < PHI3_INPUTS ||
      s->head_size % PHI3_INPUTS || s->vocabulary < 1 || s->half_rotary < 0 ||
      2 * s->half_rotary > s->head_size || (s->unit != 16 && s->unit != 32) || s->digits < 1 || s->digits > 2 ||
      !s->layer || !s->norm ||
      !is_matrix(s, &s->lm_head, s->vocabulary, s->hidden))
    return 0;
  for (int table = 0; table < PHI3_TABLES; table++)
    if (!s->cos[table] || !s->sin[table] || s->positions[table] < 1) return 0;
  for (int i = 0; i < s->layers; i++)
    if (!is_layer(s, &s->layer[i])) return 0;
  return 1;
}

// Memory

// A piece of what a model works with, each on lines of its own; counted where there is no memory.
static void *take(char *work, size_t *used, size_t bytes) {
  void *at = work ? work + *used : NULL;
  *used += (bytes + LINE - 1) / LINE * LINE;
  return at;
}

static void place_activations(activations *a, char *work, size_t *used, const phi3_model *m,
                              int inputs) {
  const phi3_shape *s = &m->shape;
  const int rows = (m->room.rows + TOGETHER - 1) / TOGETHER * TOGETHER;
  const size_t values = (size_t)s->digits * rows * inputs;
  *a = (activations){.rows = rows, .inputs = inputs, .digits = s->digits, .unit = s->unit};
  a->values = take(work, used, values);
  a->scales = take(work, used, values / s->unit * sizeof(float));
  a->offsets = take(work, used, values / s->unit * sizeof(int32_t));
}

static size_t place_work(phi3_model *m, char *work) {
  const phi3_shape *s = &m->shape;
  const size_t rows = (size_t)m->room.rows, own = (size_t)s->heads * s->head_size;
  const size_t shared = (size_t)s->key_value_heads * s->head_size;
  const size_t queries = (size_t)ATTENTION_ROWS * (s->heads / s->key_value_heads);
  const size_t most = own > (size_t)s->hidden ? own : (size_t)s->hidden;
  const size_t inputs = most > (size_t)s->intermediate ? most : (size_t)s->intermediate;
  size_t used = 0;
  m->states = take(work, &used, rows * s->hidden * sizeof(float));
  m->qkv = take(work, &used, rows * (own + 2 * shared) * sizeof(float));
  m->logits = take(work, &used,
                   (size_t)m->room.wanted * tiles_of(&s->lm_head) * PHI3_OUTPUTS * sizeof(float));
  place_activations(&m->hidden, work, &used, m, s->hidden);
  place_activations(&m->attention, work, &used, m, (int)own);
  place_activations(&m->mlp, work, &used, m, s->intermediate);
  m->thread_rooms = take(work, &used, (size_t)m->room.threads * sizeof(thread_room));
  for (int i = 0; i < m->room.threads; i++) {
    float *sums = take(work, &used, queries * s->head_size * sizeof(float));
    float *weights = take(work, &used, queries * PHI3_BLOCK * sizeof(float));
    uint8_t *first = take(work, &used, inputs * PHI3_OUTPUTS);
    uint8_t *second = take(work, &used, inputs * PHI3_OUTPUTS);
    if (work) m->thread_rooms[i] = (thread_room){sums, weights, {first, second}};
  }
  return used;
}

// Pages that are there when they are first used, in large ones where the system has them.
static void *reserve(size_t bytes) {
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return NULL;
  madvise(at, bytes, MADV_HUGEPAGE);
  return at;
}

static int fill(phi3_model *m, const phi3_shape *shape) {
  m->layers = malloc((size_t)shape->layers * sizeof(phi3_layer));
  if (!m->layers) return PHI3_NO_MEMORY;
  memcpy(m->layers, shape->layer, (size_t)shape->layers * sizeof(phi3_layer));
  m->shape.layer = m->layers;
  m->work_bytes = place_work(m, NULL);
  m->cache_bytes = (size_t)shape->layers * m->room.blocks * shape->key_value_heads * 2 *
                   PHI3_BLOCK * shape->head_size * sizeof(_Float16);
  m->work = reserve(m->work_bytes);
  m->cache = reserve(m->cache_bytes);
  if (!m->work || !m->cache) return PHI3_NO_MEMORY;
  place_work(m, m->work);
  m->pool = pool_create(m->room.threads);
  return m->pool ? PHI3_OK : PHI3_NO_THREADS;
}

int phi3_create(const phi3_shape *shape, const phi3_room *room, const char *instructions,
                phi3_model **model) {
  *model = NULL;
  if (!is_shape(shape) || room->threads < 1 || room->rows < 1 || room->wanted < 1 ||
      room->wanted > room->rows || room->blocks < 1)
    return PHI3_BAD_SHAPE;
  const instruction_set *set = find_set(instructions);
  if (!set) return PHI3_NO_PROCESSOR;
  phi3_model *made = calloc(1, sizeof *made);
  if (!made) return PHI3_NO_MEMORY;
  made->shape = *shape;
  made->room = *room;
  made->instructions = set;
  int failed = fill(made, shape);
  if (failed) phi3_free(made);
  else *model = made;
  return failed;
}

void phi3_free(phi3_model *model) {
  if (!model) return;
  pool_free(model->pool);
  if (model->work) munmap(model->work, model->work_bytes);
  if (model->cache) munmap(model->cache, model->cache_bytes);
  free(model->layers);
  free(model);
}

// Keys and values

int phi3_copy_block(phi3_model *m, int32_t from, int32_t to) {
  const int blocks = m->room.blocks;
  if (from < 0 || from >= blocks || to < 0 || to >= blocks) return PHI3_BAD_SHAPE;
  const size_t values = (size_t)m->shape.key_value_heads * 2 * PHI3_BLOCK * m->shape.head_size;
  for (int layer = 0; layer < m->shape.layers; layer++) {
    _Float16 *cache = m->cache + (size_t)layer * blocks * values;
    memmove(cache + to * values, cache + from * values, values * sizeof *cache);
  }
  return PHI3_OK;
}

// Steps

static int is_batch(const phi3_model *m, const phi3_batch *b) {
  if (b->rows < 1 || b->rows > m->room.rows || b->wanted_rows < 0 ||
      b->wanted_rows > m->room.wanted)
    return 0;
  for (int row = 0; row < b->rows; row++) {
    const int position = b->positions[row], place = position / PHI3_BLOCK;
    if (b->sequences[row] < 0) return 0;
    const int rotary = b->tables[b->sequences[row]];
    if (b->tokens[row] < 0 || b->tokens[row] >= m->shape.vocabulary || rotary >= PHI3_TABLES ||
        position < 0 || position >= m->shape.positions[rotary] || place >= b->table_length)
      return 0;
    const int32_t *table = b->block_tables + (size_t)b->sequences[row] * b->table_length;
    for (int i = 0; i <= place; i++)
      if (table[i] < 0 || table[i] >= m->room.blocks) return 0;
  }
  for (int i = 0; i < b->wanted_rows; i++)
    if (b->wanted[i] < 0 || b->wanted[i] >= b->rows) return 0;
  return 1;
}

int phi3_step(phi3_model *model, const phi3_batch *batch, float *logits, int32_t *best,
              float *log_probability) {
  if (!is_batch(model, batch)) return PHI3_BAD_SHAPE;
  step_of step = {model, batch, logits, best, log_probability};
  pool_run(model->pool, model->instructions->step, &step);
  return PHI3_OK;
}

// One step of a Phi-3 model on the CPU: the plain C interface of the library.
//
// The caller reads the model's graph, maps its packed weights, and decides which tokens of which
// sequences a step takes; the library computes, on threads of its own, and keeps keys and values.
// There is no global state, and a step allocates nothing.
//
// What a row's results are does not depend on the other rows of a step, nor on the number of
// threads: every sum has one order.
#ifndef PHI3_H
#define PHI3_H

#include <stdint.h>

#define PHI3_OUTPUTS 32  // of a tile of weights
#define PHI3_INPUTS 32   // what the numbers of inputs are multiples of
#define PHI3_BLOCK 32    // tokens of a block of the KV cache
#define PHI3_TABLES 2    // of rotary embeddings: of short texts, and of long ones

enum {
  PHI3_OK = 0,
  PHI3_NO_MEMORY = -1,     // for what a model works with, or its KV cache
  PHI3_NO_THREADS = -2,    // the system starts no more of them
  PHI3_BAD_SHAPE = -3,     // a model or a step that cannot be
  PHI3_NO_PROCESSOR = -4,  // this one lacks the instructions that were asked for
};

// Weights of y = x W^T, packed by phi3_pack.
typedef struct {
  const uint8_t *tiles;
  int32_t outputs, inputs;
  int32_t bits;         // of a weight, 4 or 8
  int32_t block;        // inputs that share a scale, 16 or a multiple of 32
  int32_t zero_points;  // whether each block has a zero point; else it is in the middle, 8 or 128
} phi3_matrix;

typedef struct {
  const float *attention_norm, *mlp_norm;
  phi3_matrix qkv[3];  // of queries, keys and values; or all three in the first
  phi3_matrix o, gate, up, down;
  int32_t window;  // tokens that one attends to at most, itself among them; 0 for all
} phi3_layer;

typedef struct {
  int32_t layers, hidden, intermediate, heads, key_value_heads, head_size, vocabulary;
  int32_t half_rotary;  // pairs of values of a head that are rotated
  int32_t positions[PHI3_TABLES];  // that the tables of cosines and sines have rows for
  int32_t unit;         // activations that are rounded by one scale: 16 where a block has 16, or 32
  int32_t digits;       // of 8 bits that activations are rounded to: 1, or 2 where they are not
  float epsilon, attention_scale;
  const phi3_layer *layer;
  const float *embedding;  // vocabulary x hidden; NULL where it is the weights of lm_head
  const float *cos[PHI3_TABLES], *sin[PHI3_TABLES];  // positions x half_rotary
  const float *norm;
  phi3_matrix lm_head;
} phi3_shape;

// Sizes of what a model works with.
typedef struct {
  int32_t threads;
  int32_t rows;    // of a step at most
  int32_t wanted;  // rows of a step at most whose logits are asked for
  int32_t blocks;  // of the KV cache
} phi3_room;

// Tokens that a step reads. A sequence's rows follow each other in the order of their positions,
// and all tokens before them were read in earlier steps.
typedef struct {
  int32_t rows;
  const int32_t *tokens, *positions;
  const int32_t *sequences;  // a row's place in block_tables and in tables
  const int32_t *block_tables;
  int32_t table_length;     // blocks of each row of block_tables
  const uint8_t *tables;    // which rotary embedding a sequence has
  int32_t wanted_rows;      // of which logits are asked for
  const int32_t *wanted;    // their places, ascending
} phi3_batch;

typedef struct phi3_model phi3_model;

// Instruction sets, the best one that this processor has first; ends with "portable".
const char *phi3_instructions(int place);

// Bytes of packed weights; 0 for a matrix that cannot be packed.
int64_t phi3_packed_size(const phi3_matrix *matrix);

// Pack the weights of an ONNX MatMulNBits node.
//   weights      outputs x blocks x block * bits / 8, the first of two in the lower bits
//   scales       outputs x blocks
//   zero_points  outputs x bytes, as many as blocks take, the first of two in the lower bits; NULL
//                where there are none
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
void phi3_pack(const phi3_matrix *matrix, const uint8_t *weights, const float *scales,
               const uint8_t *zero_points, uint8_t *packed);

// Make a model; the weights that the shape points to must stay, the shape itself need not.
int phi3_create(const phi3_shape *shape, const phi3_room *room, const char *instructions,
                phi3_model **model);

// Read tokens. Of each wanted row: its logits (vocabulary values; NULL where none are wanted), the
// likeliest token, the first of equal ones, and its log-probability: no number where the logits
// are none.
int phi3_step(phi3_model *model, const phi3_batch *batch, float *logits, int32_t *best,
              float *log_probability);

// Copy the keys and values of a block of the KV cache.
int phi3_copy_block(phi3_model *model, int32_t from, int32_t to);

void phi3_free(phi3_model *model);

#endif

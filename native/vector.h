// Sixteen numbers at a time, in the compiler's vectors: it makes of them what a processor has.
#ifndef PHI3_VECTOR_H
#define PHI3_VECTOR_H

#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef _Float16 halves __attribute__((vector_size(32)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

INLINE vec load(const float *at) { vec v; memcpy(&v, at, sizeof v); return v; }
INLINE void store(float *at, vec v) { memcpy(at, &v, sizeof v); }
INLINE vec load_halves(const _Float16 *at) {
  halves h;
  memcpy(&h, at, sizeof h);
  return __builtin_convertvector(h, vec);
}
INLINE void store_halves(_Float16 *at, vec v) {
  halves h = __builtin_convertvector(v, halves);
  memcpy(at, &h, sizeof h);
}
INLINE vec load_bytes(const uint8_t *at) {
  typedef uint8_t bytes __attribute__((vector_size(16)));
  bytes b;
  memcpy(&b, at, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, ivec), vec);
}
// not 0 + x: that is an addition, for it makes 0 of -0
INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

// a x b + c. In one rounding where the processor does that: without, it would take a call each.
INLINE vec multiply_add(vec a, vec b, vec c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// To whole numbers, halves to even ones, of numbers below 2^22: a float of 3 x 2^22 has no bits for a
// fraction. The builtin would be a call where the processor has no instruction for it, of a function
// that older systems lack.
INLINE vec round_to_even(vec x) {
  const vec shift = all(12582912.0f);
  return x + shift - shift;
}

// Always in the same order.
INLINE float sum_of(vec v) {
  vec8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  vec4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
              __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float largest_of(vec v) { return __builtin_reduce_max(v); }

// e^x to 2 units in the last place; 0 below -87. As Cephes has it (expf.c, Stephen L. Moshier).
INLINE vec exp_of(vec x) {
  x = __builtin_elementwise_min(__builtin_elementwise_max(x, all(-87.33654f)), all(88.0f));
  vec n = round_to_even(x * 1.44269504f);
  vec r = multiply_add(n, all(-0.693359375f), x);
  r = multiply_add(n, all(2.12194440e-4f), r);
  vec p = all(1.9875691500e-4f);
  p = multiply_add(p, r, all(1.3981999507e-3f));
  p = multiply_add(p, r, all(8.3334519073e-3f));
  p = multiply_add(p, r, all(4.1665795894e-2f));
  p = multiply_add(p, r, all(1.6666665459e-1f));
  p = multiply_add(p, r, all(5.0000001201e-1f));
  p = multiply_add(p, r * r, r) + 1.0f;
  ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec scale;
  memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

#endif

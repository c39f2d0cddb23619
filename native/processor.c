#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

// Intel's manual, volume 2, CPUID and XGETBV
enum { AVX_STATE = 0x6, AVX512_STATE = 0xe6 };

typedef struct {
  unsigned a, b, c, d;
} words;

static words ask(unsigned leaf) {
  words w = {0};
  __get_cpuid_count(leaf, 0, &w.a, &w.b, &w.c, &w.d);
  return w;
}

// Whether the system keeps such registers when it changes programs.
static int keeps(unsigned state) {
  unsigned low, high;
  if (!(ask(1).c & bit_OSXSAVE)) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & state) == state;
}

int processor_has_avx2(void) {
  const unsigned wanted = bit_FMA | bit_F16C;
  return keeps(AVX_STATE) && (ask(1).c & wanted) == wanted && (ask(7).b & bit_AVX2);
}

int processor_has_avx512_vnni(void) {
  const unsigned wanted = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL | bit_AVX512CD;
  const words w = ask(7);
  return processor_has_avx2() && keeps(AVX512_STATE) && (w.b & wanted) == wanted &&
         (w.c & bit_AVX512VNNI);
}
#else
int processor_has_avx2(void) { return 0; }
int processor_has_avx512_vnni(void) { return 0; }
#endif

#define _GNU_SOURCE
#include "pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

// Between phases of a step threads wait for microseconds, and it takes longer than that to sleep.
enum { SPINS = 20000, LINE = 64 };

struct pool {
  // each written by other threads at another time, so each on a line of its own
  _Alignas(LINE) _Atomic uint32_t runs;
  _Alignas(LINE) _Atomic uint32_t phase;
  _Alignas(LINE) _Atomic int arrived;
  _Alignas(LINE) _Atomic int next;
  _Alignas(LINE) _Atomic int ended;  // threads that have left the run
  _Alignas(LINE) _Atomic int asleep;
  int threads;
  pool_work work;
  void *argument;
  pthread_t *thread;
};

typedef struct {
  pool *pool;
  int thread;
} place;

static void pause_processor(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

// Wait until a word is no longer what it was.
static void wait_for_change(pool *pool, _Atomic uint32_t *word, uint32_t old) {
  for (int spins = 0; atomic_load_explicit(word, memory_order_acquire) == old; spins++) {
    if (spins < SPINS) {
      pause_processor();
      continue;
    }
    // in one order with what change() does: either it sees this thread, or the system the change
    atomic_fetch_add(&pool->asleep, 1);
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&pool->asleep, 1);
  }
}

static void change(pool *pool, _Atomic uint32_t *word) {
  atomic_fetch_add(word, 1);
  if (atomic_load(&pool->asleep)) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void *serve(void *argument) {
  place me = *(place *)argument;
  free(argument);
  pool *pool = me.pool;
  for (uint32_t seen = 0;; seen++) {
    wait_for_change(pool, &pool->runs, seen);
    if (!pool->work) return NULL;
    pool->work(pool, me.thread, pool->argument);
    atomic_fetch_add_explicit(&pool->ended, 1, memory_order_release);
  }
}

static void stop(pool *pool, int started) {
  pool->work = NULL;
  change(pool, &pool->runs);
  for (int i = 1; i < started; i++) pthread_join(pool->thread[i], NULL);
  free(pool->thread);
  free(pool);
}

pool *pool_create(int threads) {
  pool *made = aligned_alloc(LINE, (sizeof(pool) + LINE - 1) / LINE * LINE);
  if (!made) return NULL;
  *made = (pool){.threads = threads, .thread = calloc((size_t)threads, sizeof(pthread_t))};
  if (!made->thread) {
    free(made);
    return NULL;
  }
  for (int i = 1; i < threads; i++) {
    place *at = malloc(sizeof(place));
    if (at) *at = (place){made, i};
    if (!at || pthread_create(&made->thread[i], NULL, serve, at)) {
      free(at);
      stop(made, i);
      return NULL;
    }
  }
  return made;
}

void pool_free(pool *pool) {
  if (pool) stop(pool, pool->threads);
}

int pool_threads(const pool *pool) { return pool->threads; }

void pool_run(pool *pool, pool_work work, void *argument) {
  pool->work = work;
  pool->argument = argument;
  atomic_store_explicit(&pool->ended, 1, memory_order_relaxed);
  atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
  if (pool->threads > 1) change(pool, &pool->runs);
  work(pool, 0, argument);
  while (atomic_load_explicit(&pool->ended, memory_order_acquire) < pool->threads)
    pause_processor();
}

int pool_take(pool *pool, int items) {
  // one that nobody can take is not counted: there may be many threads and phases
  if (atomic_load_explicit(&pool->next, memory_order_relaxed) >= items) return items;
  return atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
}

void pool_wait(pool *pool) {
  uint32_t phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < pool->threads) {
    wait_for_change(pool, &pool->phase, phase);
    return;
  }
  atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
  atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
  if (pool->threads > 1) change(pool, &pool->phase);
}

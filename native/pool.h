// Threads that compute a step together.
#ifndef PHI3_POOL_H
#define PHI3_POOL_H

#include <stdint.h>

typedef struct pool pool;
typedef void (*pool_work)(pool *, int thread, void *argument);

// NULL where the system has no more memory or threads.
pool *pool_create(int threads);
void pool_free(pool *);
int pool_threads(const pool *);

// Let every thread do the work, the caller's among them; returns when all have.
void pool_run(pool *, pool_work, void *argument);

// For work only. The next of so many items that nobody has taken, or one beyond them: a thread
// that the system holds up leaves its share to the others. After the last one, pool_wait.
int pool_take(pool *, int items);

// For work only. Wait until every thread is here, after which items are counted from 0 again.
void pool_wait(pool *);

#endif

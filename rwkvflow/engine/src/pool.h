// Threads that all run the same function, in step: the calling thread is number 0 of them.
//
// Waiting is a short spin and then sleep, so that barriers cost little where every thread has a core, and nothing is burnt
// where it has not.
#pragma once

#include <stdint.h>

namespace rwkvflow {

struct Pool;

// 1 <= threads <= kMaxThreads. Null for no memory. Where the system refuses threads the pool has fewer; see pool_size.
inline constexpr uint32_t kMaxThreads = 256;
Pool *pool_create(uint32_t threads);
void pool_free(Pool *pool);
uint32_t pool_size(const Pool *pool);

// Runs work(argument, index) on every thread, index 0 on the caller's, and returns when all have. Not reentrant.
void pool_run(Pool *pool, void (*work)(void *argument, uint32_t index), void *argument);

// Inside work: waits until every thread has come here; what they wrote before is seen by all after. Every thread must call
// it equally often.
void pool_barrier(Pool *pool);

}  // namespace rwkvflow

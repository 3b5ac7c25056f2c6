// Threads that all run the same function, in step: the calling thread is number 0 of them.
//
// Waiting is a short spin and then sleep, so that barriers cost little where every thread has a core, and nothing is
// burnt where it has not. Where processors are not all alike, threads are put on those that processors.h names.
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

// Inside work: waits until every thread has come here; what they wrote before is seen by all after. Every thread must
// call it equally often.
void pool_barrier(Pool *pool);

// Inside work: `units` of it, which the threads take from each other. A thread begins with its own share, in order, in
// pieces that get smaller; after that it helps others with what they have not begun. So one that has a slower core, or
// loses its core for a while, does less, and the others do not wait for it as long.
//
//     for (Pieces pieces = {pool, index, turn, units}; pool_take(&pieces);) work_on(pieces.begin, pieces.end);
//
// Every thread must go through the same work in the same order; turns count from 1 in every run. Nobody waits: a thread
// may be at the next turn, or at one further on, while others work on this one. What must not begin before all of it is
// done needs a barrier.
struct Pieces {
    Pool *pool;
    uint32_t index, turn, units;
    uint32_t begin = 0, end = 0;  // the piece that was taken
    uint32_t passed = 0;          // threads whose shares have been looked through, from its own on
};
bool pool_take(Pieces *pieces);  // false when there is nothing left to begin

}  // namespace rwkvflow

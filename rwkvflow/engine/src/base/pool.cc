#include "base/pool.h"

#include <pthread.h>
#include <stdlib.h>
#if !defined(_WIN32)
#include <signal.h>
#endif

#include "base/affinity.h"
#include "base/memory.h"

namespace rwkvflow {

namespace {

constexpr int kSpins = 2000;
constexpr uint32_t kHelped = 8;  // that a thread looks for work at: each look may cost a cache miss

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

// A counter that only grows and can be waited on. A waiter registers in `sleepers` before it looks at the counter for
// the last time, and who raises it looks at `sleepers` afterwards (both sequentially consistent): no wake-up is lost.
struct alignas(kAlignment) Gate {
    uint32_t value = 0;
    uint32_t sleepers = 0;
    pthread_mutex_t mutex;
    pthread_cond_t condition;

    void create() {
        pthread_mutex_init(&mutex, nullptr);
        pthread_cond_init(&condition, nullptr);
    }
    void destroy() {
        pthread_mutex_destroy(&mutex);
        pthread_cond_destroy(&condition);
    }
    void wait_beyond(uint32_t seen) {
        for (int i = 0; i < kSpins; ++i) {
            if (__atomic_load_n(&value, __ATOMIC_ACQUIRE) != seen) return;
            relax();
        }
        pthread_mutex_lock(&mutex);
        __atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&value, __ATOMIC_SEQ_CST) == seen) pthread_cond_wait(&condition, &mutex);
        __atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_unlock(&mutex);
    }
    void raise() {
        __atomic_fetch_add(&value, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&sleepers, __ATOMIC_SEQ_CST) == 0) return;
        pthread_mutex_lock(&mutex);
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
    }
};

// How much of a thread's share has been taken, in the turn that stands in the upper half; an earlier turn is nothing
// yet.
struct alignas(kAlignment) Share {
    uint64_t taken;
};

}  // namespace

struct Pool {
    Gate start, barrier;
    alignas(kAlignment) uint32_t arrived;
    alignas(kAlignment) uint32_t size;
    bool stop;
    void (*work)(void *, uint32_t);
    void *argument;
    struct Worker {
        Pool *pool;
        uint32_t index;
        pthread_t thread;
        bool placed;  // on `where`, and not wherever the system puts it
        CpuSet where;
    } *workers;      // number 0 is whoever calls pool_run
    CpuSet allowed;  // where whoever called pool_create might run
    Share shares[kMaxThreads];
};

namespace {

void *worker_main(void *argument) {
    const Pool::Worker *self = static_cast<Pool::Worker *>(argument);
    Pool *pool = self->pool;
    if (self->placed) set_affinity(self->where);
    for (uint32_t seen = 0;; ++seen) {
        pool->start.wait_beyond(seen);
        if (pool->stop) return nullptr;
        pool->work(pool->argument, self->index);
        pool_barrier(pool);
    }
}

// Decides where threads go. It reaches no result, so what goes wrong here is nobody's error.
void place(Pool *pool, uint32_t threads) {
    if (!pinning_wanted() || !get_affinity(&pool->allowed)) return;
    Processors *processors = static_cast<Processors *>(calloc(1, sizeof(Processors)));
    if (processors != nullptr && processors_here(processors) && processors->count > 1) {
        const uint32_t here = processor_here();
        for (uint32_t i = 0; i < threads; ++i)
            pool->workers[i].placed = place_thread(*processors, threads, i, here, &pool->workers[i].where);
    }
    free(processors);
}

}  // namespace

Pool *pool_create(uint32_t threads) {
    if (threads > kMaxThreads) threads = kMaxThreads;
    Pool *pool = static_cast<Pool *>(aligned_zeroed(sizeof(Pool)));
    if (pool == nullptr) return nullptr;
    pool->workers = static_cast<Pool::Worker *>(calloc(threads, sizeof(Pool::Worker)));
    if (pool->workers == nullptr) {
        aligned_free(pool);
        return nullptr;
    }
    pool->start.create();
    pool->barrier.create();
    place(pool, threads);
#if !defined(_WIN32)
    sigset_t all, before;  // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    uint32_t started = 1;
    for (; started < threads; ++started) {
        Pool::Worker *worker = &pool->workers[started];
        worker->pool = pool;
        worker->index = started;
        if (pthread_create(&worker->thread, nullptr, worker_main, worker) != 0) break;
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    pool->size = started;  // read by the workers only after the first pool_run
    return pool;
}

void pool_free(Pool *pool) {
    if (pool == nullptr) return;
    pool->stop = true;
    pool->start.raise();
    for (uint32_t i = 1; i < pool->size; ++i) pthread_join(pool->workers[i].thread, nullptr);
    pool->start.destroy();
    pool->barrier.destroy();
    free(pool->workers);
    aligned_free(pool);
}

uint32_t pool_size(const Pool *pool) { return pool->size; }

void pool_run(Pool *pool, void (*work)(void *, uint32_t), void *argument) {
    if (pool->size > 1) {
        pool->work = work;
        pool->argument = argument;
        for (uint32_t i = 0; i < pool->size; ++i) pool->shares[i].taken = 0;
        pool->start.raise();
    }
    // The caller's thread belongs to the caller: it is put in its place for as long as this takes, unless somebody has
    // already put it elsewhere than where it was.
    CpuSet before;
    const Pool::Worker &caller = pool->workers[0];
    const bool placed = caller.placed && get_affinity(&before) && before == pool->allowed;
    if (placed) set_affinity(caller.where);
    work(argument, 0);
    pool_barrier(pool);
    if (placed) set_affinity(before);
}

void pool_barrier(Pool *pool) {
    if (pool->size == 1) return;
    const uint32_t seen = __atomic_load_n(&pool->barrier.value, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&pool->arrived, 1, __ATOMIC_ACQ_REL) == pool->size) {
        __atomic_store_n(&pool->arrived, 0, __ATOMIC_RELAXED);
        pool->barrier.raise();
    } else {
        pool->barrier.wait_beyond(seen);
    }
}

bool pool_take(Pieces *p) {
    Pool *pool = p->pool;
    const uint32_t size = pool->size;
    if (size == 1) {
        p->begin = p->end, p->end = p->units;
        return p->begin < p->end;
    }
    for (; p->passed < size && p->passed <= kHelped; ++p->passed) {
        const uint64_t whose = (p->index + p->passed) % size;
        const uint32_t first = static_cast<uint32_t>(p->units * whose / size);
        const uint32_t share = static_cast<uint32_t>(p->units * (whose + 1) / size) - first;
        // Only who does what is decided here, so no order of memory is asked for: barriers see to that.
        uint64_t *taken = &pool->shares[whose].taken, seen = __atomic_load_n(taken, __ATOMIC_RELAXED);
        while (seen >> 32 <= p->turn) {
            const uint32_t from = seen >> 32 == p->turn ? static_cast<uint32_t>(seen) : 0;
            if (from == share) break;
            const uint32_t to = from + (share - from + 3) / 4;
            if (!__atomic_compare_exchange_n(taken, &seen, static_cast<uint64_t>(p->turn) << 32 | to, true,
                                             __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                continue;
            p->begin = first + from, p->end = first + to;
            return true;
        }
    }
    return false;
}

}  // namespace rwkvflow

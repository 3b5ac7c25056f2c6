#include "pool.h"

#include <pthread.h>
#include <stdlib.h>
#if !defined(_WIN32)
#include <signal.h>
#endif

#include "memory.h"

namespace rwkvflow {

namespace {

constexpr int kSpins = 2000;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

// A counter that only grows and can be waited on. A waiter registers in `sleepers` before it looks at the counter for the
// last time, and who raises it looks at `sleepers` afterwards (both sequentially consistent): no wake-up is lost.
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
    } *workers;
};

namespace {

void *worker_main(void *argument) {
    const Pool::Worker *self = static_cast<Pool::Worker *>(argument);
    Pool *pool = self->pool;
    for (uint32_t seen = 0;; ++seen) {
        pool->start.wait_beyond(seen);
        if (pool->stop) return nullptr;
        pool->work(pool->argument, self->index);
        pool_barrier(pool);
    }
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
        pool->start.raise();
    }
    work(argument, 0);
    pool_barrier(pool);
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

}  // namespace rwkvflow

#include "limits.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

namespace {

constexpr uint32_t kMostThreads = 256;

// Every thread's work, one of them the caller's; how many there were.
uint32_t together(uint32_t threads, void *(*work)(void *), char *arguments, size_t each) {
    static pthread_t started[kMostThreads];
    uint32_t count = 1;
    for (; count < threads && count < kMostThreads; ++count)
        if (pthread_create(&started[count], nullptr, work, arguments + each * count) != 0) break;
    work(arguments);
    for (uint32_t i = 1; i < count; ++i) pthread_join(started[i], nullptr);
    return count;
}

// One thread's part of the buffer, summed so that it is really read.
struct Reader {
    const char *data;
    size_t bytes;
    int way;
    uint64_t sum;
};

typedef uint64_t Wide __attribute__((vector_size(64)));

// In `streams` places at once, asked for `ahead` bytes before.
template <size_t STREAMS, size_t AHEAD>
uint64_t read_streams(const char *data, size_t bytes) {
    Wide sums[4] = {};
    const size_t part = bytes / STREAMS / sizeof sums * sizeof sums;
    for (size_t at = 0; at < part; at += sizeof sums)
        for (size_t stream = 0; stream < STREAMS; ++stream) {
            const char *from = data + stream * part + at;
            if constexpr (AHEAD != 0)
                for (size_t line = 0; line < sizeof sums; line += 64) __builtin_prefetch(from + AHEAD + line);
            Wide values[4];
            memcpy(values, from, sizeof values);
            for (int i = 0; i < 4; ++i) sums[i] += values[i];
        }
    const Wide all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

void *read_all(void *argument) {
    Reader *reader = static_cast<Reader *>(argument);
    // As the engine reads weights: without asking ahead a single thread leaves some of the bandwidth unused. But where
    // the processor does so itself, better than it is told, that is only more work.
    if (reader->way == 0) reader->sum = read_streams<1, 4096>(reader->data, reader->bytes);
    else if (reader->way == 1) reader->sum = read_streams<1, 0>(reader->data, reader->bytes);
    else reader->sum = read_streams<4, 1024>(reader->data, reader->bytes);
    return nullptr;
}

struct Multiplier {
    rwkvflow::Products kind;
    uint32_t rounds;
    uint64_t done;
};

void *multiply_all(void *argument) {
    Multiplier *multiplier = static_cast<Multiplier *>(argument);
    multiplier->done = rwkvflow::kernels()->most_products(multiplier->kind, multiplier->rounds);
    return nullptr;
}

}  // namespace

double now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double now_of(uint32_t threads) {
    struct timespec t;
    if (threads != 1 || clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) != 0) return now();
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double read_once(const char *buffer, size_t bytes, uint32_t threads, int way) {
    static Reader readers[kMostThreads];
    const size_t share = bytes / threads / 4096 * 4096;
    const double begin = now();
    for (uint32_t i = 0; i < threads; ++i) readers[i] = {buffer + share * i, share, way, 0};
    const uint32_t count = together(threads, read_all, reinterpret_cast<char *>(readers), sizeof *readers);
    return (now() - begin) / (static_cast<double>(share) * count);
}

double products_once(rwkvflow::Products kind, uint32_t threads) {
    constexpr double kLong = 0.004;  // seconds, in which threads begin soon enough
    static Multiplier all[kMostThreads];
    for (uint32_t rounds = 1u << 12;; rounds *= 2) {
        for (uint32_t i = 0; i < threads; ++i) all[i] = {kind, rounds, 0};
        const double begin = now_of(threads);
        const uint32_t count = together(threads, multiply_all, reinterpret_cast<char *>(all), sizeof *all);
        const double spent = now_of(threads) - begin;
        if (spent < kLong && rounds < 1u << 30) continue;
        double done = 0;
        for (uint32_t i = 0; i < count; ++i) done += static_cast<double>(all[i].done);
        return done / spent;
    }
}

// Work that threads take from each other: every unit is done exactly once, in any mixture of sizes, with threads that
// are late, with barriers and without. Compiled with the sanitizer of threads a unit done twice is a race, too.
//
// The machine is made up: two cores of two hyperthreads each, and threads that remember where they were put.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/affinity.h"
#include "base/pool.h"

using namespace rwkvflow;

namespace {

constexpr uint32_t kCpus = 4;
thread_local CpuSet mine = {{(1u << kCpus) - 1}};

}  // namespace

namespace rwkvflow {

bool get_affinity(CpuSet *out) { return *out = mine, true; }
void set_affinity(const CpuSet &set) { mine = set; }
uint32_t processor_here() { return 0; }
bool processors_here(Processors *out) {
    *out = {};
    for (uint16_t cpu = 0; cpu < kCpus; ++cpu)
        out->cpus[out->count++] = {cpu, static_cast<uint16_t>(cpu % 2), 0, static_cast<uint16_t>(cpu / 2), false};
    return true;
}

}  // namespace rwkvflow

namespace {

constexpr uint32_t kRuns = 20, kTurns = 40, kMost = 200;

uint32_t next(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

struct Turn {
    uint32_t units;
    bool barrier;          // before it
    uint32_t done[kMost];  // by thread number done - 1
};

struct Run {
    Pool *pool;
    Turn turns[kTurns];
    uint32_t late;  // the thread that takes a break with every piece
    uint32_t wrong[kMaxThreads], placed[kMaxThreads];
};

void work(void *argument, uint32_t index) {
    Run *run = static_cast<Run *>(argument);
    static Processors processors[kMaxThreads];
    CpuSet where;
    (void)processors_here(&processors[index]);
    run->placed[index] = place_thread(processors[index], pool_size(run->pool), index, 0, &where) && mine == where;
    for (uint32_t i = 0; i < kTurns; ++i) {
        Turn *turn = &run->turns[i];
        if (turn->barrier) {
            pool_barrier(run->pool);
            // What was done before is seen by everybody.
            for (uint32_t j = 0; i > 0 && j < turn[-1].units; ++j) run->wrong[index] += turn[-1].done[j] == 0;
        }
        for (Pieces p = {run->pool, index, i + 1, turn->units}; pool_take(&p);) {
            run->wrong[index] += p.begin >= p.end || p.end > turn->units;
            for (uint32_t j = p.begin; j < p.end; ++j) {
                run->wrong[index] += turn->done[j] != 0;
                turn->done[j] = index + 1;
            }
            if (index == run->late)
                for (int k = 0; k < 20000; ++k) __asm__ volatile("");
        }
    }
}

}  // namespace

// Prints how many units others did of a share whose thread was late, and how many threads were where they belong; then
// whether the caller's own thread is put anywhere once it was moved by somebody else, and whether it is as it was.
int main(int, char **argv) {
    Pool *pool = pool_create(static_cast<uint32_t>(atoi(argv[1])));
    if (pool == nullptr) return 1;
    const uint32_t threads = pool_size(pool);
    Run *run = static_cast<Run *>(calloc(1, sizeof(Run)));
    if (run == nullptr) return 1;
    uint32_t state = 7, wrong = 0, helped = 0, placed = 0, moved = 0;
    const CpuSet before = mine;
    for (uint32_t r = 0; r < kRuns; ++r) {
        *run = {};
        run->pool = pool;
        run->late = next(&state) % threads;
        for (Turn &turn : run->turns) turn.units = next(&state) % kMost, turn.barrier = next(&state) % 2 == 0;
        pool_run(pool, work, run);
        for (uint32_t i = 0; i < threads; ++i) wrong += run->wrong[i], placed += run->placed[i];
        wrong += !(mine == before);
        for (const Turn &turn : run->turns)
            for (uint32_t j = 0; j < turn.units; ++j) {
                wrong += turn.done[j] == 0;
                const bool own = j >= turn.units * run->late / threads && j < turn.units * (run->late + 1) / threads;
                helped += own && turn.done[j] != 0 && turn.done[j] != run->late + 1;
            }
    }
    const CpuSet elsewhere = {{2}};
    mine = elsewhere;
    *run = {};
    run->pool = pool;
    pool_run(pool, work, run);
    moved = run->placed[0];
    wrong += !(mine == elsewhere);
    pool_free(pool);
    free(run);
    printf("%u %u %u %u\n", wrong, helped, placed / kRuns, moved);
    return 0;
}

// Which processors this process may use, what they share, and where threads are best put on them.
//
// Linux tells in files below /sys and /proc, which are read from a folder of any name: tests make trees of machines
// that they lack. Elsewhere nothing is known but a number, and no thread is put anywhere.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace rwkvflow {

inline constexpr uint32_t kMostCpus = 1024;  // as many as an affinity mask of libc holds

struct CpuSet {
    uint64_t bits[kMostCpus / 64] = {};

    bool has(uint32_t cpu) const { return ((bits[cpu / 64] >> (cpu % 64)) & 1) != 0; }
    void add(uint32_t cpu) { bits[cpu / 64] |= uint64_t{1} << (cpu % 64); }
    bool operator==(const CpuSet &) const = default;
};

// The kernel's form of a set: "0-3,8". False for anything else; processors beyond kMostCpus are left out.
bool parse_cpus(const char *text, CpuSet *out);
// The same form into `out`, which is cut where `room` bytes are too few.
void format_cpus(const CpuSet &set, char *out, size_t room);

// One logical processor: a hyperthread, or a core that has no others.
struct Cpu {
    uint16_t number;
    uint16_t core;    // the smallest number among the hyperthreads of its core
    uint16_t node;    // of NUMA
    uint16_t thread;  // how many of its core's are before it, of those that may be used
    bool efficient;   // a smaller core, where this process may use larger ones as well
};

// Those that are online and that this process may use, by their numbers.
struct Processors {
    uint32_t count = 0;
    uint32_t cores = 0;        // with all their hyperthreads counted once
    uint32_t performance = 0;  // of them those that are not efficient
    uint32_t nodes = 0;        // of NUMA
    double quota = 0;          // processors' time that a cgroup grants, in processors; 0 without a limit
    Cpu cpus[kMostCpus];
};

// `root` stands before every path ("" for this machine); `allowed` is the affinity mask. What a tree does not tell, or
// tells in a form that is not known, is taken as if all processors were alike.
void read_processors(const char *root, const CpuSet &allowed, Processors *out);

// As many threads as there are performance cores, and as the quota has room for: at least one.
uint32_t best_threads(const Processors &processors);

// Where thread `index` of `threads` may run. `here` is the processor that asks: what fits stays on its NUMA node. The
// kernel is left as much choice as can be, so that several programs do not meet on the same cores: performance cores, a
// hyperthread each; where these do not suffice, efficiency cores as well; then everything. Threads that fill their
// cores get one each, with all its hyperthreads; those that fill several nodes are spread over them in order, so that
// neighbours, which help each other first (pool.h), are on one node. False where it may as well run anywhere.
bool place_thread(const Processors &processors, uint32_t threads, uint32_t index, uint32_t here, CpuSet *out);

// Of this machine and the calling thread. False where it is not known: not Linux, or more processors than kMostCpus.
bool processors_here(Processors *out);
// Threads to use where nobody says how many; elsewhere than on Linux one a logical processor.
uint32_t threads_here();
// RWKV_PIN=0 in the environment leaves all threads where the system puts them.
bool pinning_wanted();

}  // namespace rwkvflow

#include "base/affinity.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace rwkvflow {

#if defined(__linux__)

bool get_affinity(CpuSet *out) {
    static_assert(sizeof(cpu_set_t) == sizeof out->bits, "a bit a processor in both");
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return false;
    *out = {};
    for (uint32_t cpu = 0; cpu < kMostCpus; ++cpu)
        if (CPU_ISSET(cpu, &set)) out->add(cpu);
    return true;
}

void set_affinity(const CpuSet &wanted) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (uint32_t cpu = 0; cpu < kMostCpus; ++cpu)
        if (wanted.has(cpu)) CPU_SET(cpu, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

uint32_t processor_here() {
    const int cpu = sched_getcpu();
    return cpu < 0 ? 0 : static_cast<uint32_t>(cpu);
}

bool processors_here(Processors *out) {
    CpuSet allowed;
    if (!get_affinity(&allowed)) return false;
    read_processors("", allowed, out);
    return out->count > 0;
}

#else

bool get_affinity(CpuSet *) { return false; }
void set_affinity(const CpuSet &) {}
uint32_t processor_here() { return 0; }
bool processors_here(Processors *) { return false; }

#endif

uint32_t threads_here() {
    Processors processors;
    if (processors_here(&processors)) return best_threads(processors);
#if defined(_WIN32)
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwNumberOfProcessors;
#else
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : static_cast<uint32_t>(count);
#endif
}

}  // namespace rwkvflow

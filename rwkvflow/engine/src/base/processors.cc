#include "base/processors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace rwkvflow {

namespace {

constexpr size_t kText = 8192;  // a list of every second processor of 1024 has 4,400 bytes
constexpr size_t kPath = 4096;

// A file whole, with a zero after it. False where it cannot be read, is empty, or is too long.
bool read_text(const char *root, const char *path, char *out) {
    char name[kPath];
    const int length = snprintf(name, sizeof name, "%s%s", root, path);
    if (length < 0 || static_cast<size_t>(length) >= sizeof name) return false;
    FILE *file = fopen(name, "rb");
    if (file == nullptr) return false;
    const size_t got = fread(out, 1, kText, file);
    fclose(file);
    if (got == 0 || got == kText || memchr(out, 0, got) != nullptr) return false;
    out[got] = 0;
    return true;
}

bool read_set(const char *root, const char *path, CpuSet *out) {
    char text[kText];
    return read_text(root, path, text) && parse_cpus(text, out);
}

// Digits up to `*text`, which moves behind them. False where there are none, or too many.
bool take_number(const char **text, uint64_t *out) {
    *out = 0;
    const char *from = *text;
    for (; **text >= '0' && **text <= '9'; ++*text) {
        if (*text - from == 18) return false;
        *out = *out * 10 + static_cast<uint64_t>(**text - '0');
    }
    return *text != from;
}

bool at_end(const char *text) { return text[0] == 0 || (text[0] == '\n' && text[1] == 0); }

bool read_number(const char *root, const char *path, uint64_t *out) {
    char text[kText];
    const char *at = text;
    return read_text(root, path, text) && take_number(&at, out) && at_end(at);
}

// The hyperthreads of a processor's core, itself among them.
CpuSet siblings(const char *root, uint32_t cpu) {
    const char *const names[] = {"core_cpus_list", "thread_siblings_list"};
    for (const char *name : names) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/topology/%s", cpu, name);
        CpuSet set;
        if (read_set(root, path, &set) && set.has(cpu)) return set;
    }
    CpuSet alone;
    alone.add(cpu);
    return alone;
}

// Cores of Intel's kinds are told by the counters that they have: a machine with one kind has neither folder.
void mark_by_kind(const char *root, Processors *out) {
    CpuSet small, large;
    bool told = false;
    const char *const paths[] = {"/sys/devices/cpu_atom/cpus", "/sys/devices/cpu_lowpower/cpus"};
    for (const char *path : paths) {
        CpuSet some;
        if (!read_set(root, path, &some)) continue;
        told = true;
        for (size_t i = 0; i < kMostCpus / 64; ++i) small.bits[i] |= some.bits[i];
    }
    if (!told || !read_set(root, "/sys/devices/cpu_core/cpus", &large)) return;
    for (uint32_t i = 0; i < out->count; ++i) {
        Cpu *cpu = &out->cpus[i];
        cpu->efficient = small.has(cpu->number) && !large.has(cpu->number);
    }
}

// Elsewhere a capacity is told, 1024 for the largest. Middle cores have more than half of it, small ones a quarter to
// two fifths.
void mark_by_capacity(const char *root, Processors *out) {
    uint64_t capacity[kMostCpus], most = 0;
    for (uint32_t i = 0; i < out->count; ++i) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/cpu_capacity", out->cpus[i].number);
        if (!read_number(root, path, &capacity[i])) return;
        most = capacity[i] > most ? capacity[i] : most;
    }
    for (uint32_t i = 0; i < out->count; ++i) out->cpus[i].efficient = capacity[i] < most / 2;
}

void mark_nodes(const char *root, Processors *out) {
    CpuSet nodes;
    if (!read_set(root, "/sys/devices/system/node/online", &nodes)) return;
    for (uint32_t node = 0; node < kMostCpus; ++node) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/node/node%u/cpulist", node);
        CpuSet set;
        if (!nodes.has(node) || !read_set(root, path, &set)) continue;  // one of memory alone has an empty list
        for (uint32_t i = 0; i < out->count; ++i)
            if (set.has(out->cpus[i].number)) out->cpus[i].node = static_cast<uint16_t>(node);
    }
}

void lower(double quota, Processors *out) {
    if (quota > 0 && (out->quota == 0 || quota < out->quota)) out->quota = quota;
}

// Version 2: "QUOTA PERIOD" or "max PERIOD".
void read_quota_of_two(const char *root, const char *folder, Processors *out) {
    char path[kPath], text[kText];
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", folder);
    uint64_t quota, period;
    const char *at = text;
    if (!read_text(root, path, text) || !take_number(&at, &quota) || *at != ' ') return;
    ++at;
    if (take_number(&at, &period) && at_end(at) && period > 0)
        lower(static_cast<double>(quota) / static_cast<double>(period), out);
}

// Version 1: -1 for no limit.
void read_quota_of_one(const char *root, const char *folder, Processors *out) {
    char path[kPath];
    uint64_t quota, period;
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", folder);
    if (!read_number(root, path, &quota)) return;
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/cpu.cfs_period_us", folder);
    if (read_number(root, path, &period) && period > 0)
        lower(static_cast<double>(quota) / static_cast<double>(period), out);
}

// Whether a list with commas, `length` long, has `word`.
bool lists(const char *list, size_t length, const char *word) {
    const size_t wanted = strlen(word);
    for (size_t at = 0; at <= length;) {
        const char *comma = static_cast<const char *>(memchr(list + at, ',', length - at));
        const size_t end = comma == nullptr ? length : static_cast<size_t>(comma - list);
        if (end - at == wanted && memcmp(list + at, word, wanted) == 0) return true;
        at = end + 1;
    }
    return false;
}

// The limits of a process's group and of all above it hold together. In a container the group may be named as it is
// called outside, and stand at the top: so what is not there has no limit, and the top is always looked at.
void read_quota(const char *root, Processors *out) {
    read_quota_of_two(root, "", out);
    read_quota_of_one(root, "", out);
    char groups[kText];
    if (!read_text(root, "/proc/self/cgroup", groups)) return;
    for (char *line = groups; *line != 0;) {  // "NUMBER:CONTROLLERS:FOLDER"; version 2 is number 0 and has none
        char *end = line + strcspn(line, "\n"), *next = *end == 0 ? end : end + 1;
        *end = 0;
        char *controllers = strchr(line, ':');
        char *folder = controllers == nullptr ? nullptr : strchr(controllers + 1, ':');
        if (folder != nullptr && folder[1] == '/' && strstr(folder, "..") == nullptr && strlen(folder) < kPath / 2) {
            const size_t length = static_cast<size_t>(folder - controllers) - 1;
            const bool two = length == 0, one = lists(controllers + 1, length, "cpu");
            for (++folder; (two || one) && folder[1] != 0; *strrchr(folder, '/') = 0) {
                (two ? read_quota_of_two : read_quota_of_one)(root, folder, out);
                if (strrchr(folder, '/') == folder) break;
            }
        }
        line = next;
    }
}

// 0: performance cores, a hyperthread each; 1: efficiency cores; 2: the other hyperthreads.
uint32_t tier(const Cpu &cpu) { return cpu.thread > 0 ? 2 : cpu.efficient ? 1 : 0; }

}  // namespace

bool parse_cpus(const char *text, CpuSet *out) {
    *out = {};
    if (at_end(text)) return true;
    for (;; ++text) {
        uint64_t first, last;
        if (!take_number(&text, &first)) return false;
        last = first;
        if (*text == '-' && (!take_number(&++text, &last) || last < first)) return false;
        for (uint64_t cpu = first; cpu <= last && cpu < kMostCpus; ++cpu) out->add(static_cast<uint32_t>(cpu));
        if (*text != ',') return at_end(text);
    }
}

void format_cpus(const CpuSet &set, char *out, size_t room) {
    size_t used = 0;
    out[0] = 0;
    for (uint32_t cpu = 0; cpu < kMostCpus && used < room; ++cpu) {
        if (!set.has(cpu)) continue;
        const uint32_t first = cpu;
        while (cpu + 1 < kMostCpus && set.has(cpu + 1)) ++cpu;
        const char *comma = used == 0 ? "" : ",";
        used += static_cast<size_t>(first == cpu ? snprintf(out + used, room - used, "%s%u", comma, cpu)
                                                 : snprintf(out + used, room - used, "%s%u-%u", comma, first, cpu));
    }
}

void read_processors(const char *root, const CpuSet &allowed, Processors *out) {
    *out = {};
    CpuSet online;
    bool told = read_set(root, "/sys/devices/system/cpu/online", &online), some = false;
    for (size_t i = 0; told && i < kMostCpus / 64; ++i) some = some || (online.bits[i] & allowed.bits[i]) != 0;
    uint16_t threads[kMostCpus] = {};  // of each core, so far
    for (uint32_t number = 0; number < kMostCpus; ++number) {
        if (!allowed.has(number) || (some && !online.has(number))) continue;
        const CpuSet core = siblings(root, number);
        uint16_t first = 0;
        while (!core.has(first)) ++first;
        out->cpus[out->count++] = {static_cast<uint16_t>(number), first, 0, threads[first]++, false};
    }
    mark_by_kind(root, out);
    bool any = false, all = true;
    for (uint32_t i = 0; i < out->count; ++i) any = any || out->cpus[i].efficient;
    if (!any) mark_by_capacity(root, out);
    for (uint32_t i = 0; i < out->count; ++i) all = all && out->cpus[i].efficient;
    mark_nodes(root, out);
    CpuSet nodes;
    for (uint32_t i = 0; i < out->count; ++i) {
        Cpu *cpu = &out->cpus[i];
        if (all) cpu->efficient = false;
        out->cores += cpu->thread == 0;
        out->performance += cpu->thread == 0 && !cpu->efficient;
        out->nodes += !nodes.has(cpu->node);
        nodes.add(cpu->node);
    }
    read_quota(root, out);
}

uint32_t best_threads(const Processors &p) {
    const double most = p.quota > 0 && p.quota < p.performance ? p.quota : p.performance;
    return most < 1 ? 1 : static_cast<uint32_t>(most);
}

bool place_thread(const Processors &p, uint32_t threads, uint32_t index, uint32_t here, CpuSet *out) {
    uint32_t upto[3] = {}, top = 0, at_home[3] = {}, home = 0;  // processors of each tier and those above it
    for (uint32_t i = 0; i < p.count; ++i)
        if (p.cpus[i].number == here) home = p.cpus[i].node;
    for (uint32_t i = 0; i < p.count; ++i)
        for (uint32_t t = tier(p.cpus[i]); t < 3; ++t) {
            ++upto[t];
            at_home[t] += p.cpus[i].node == home;
        }
    while (top < 2 && upto[top] < threads) ++top;
    const bool one_node = at_home[top] >= threads;
    const uint32_t chosen = one_node ? at_home[top] : upto[top];
    const uint32_t place = static_cast<uint32_t>(uint64_t{chosen} * index / threads);  // counted node by node
    // The processor at that place: nodes from this one's on, of a node by tiers, and then by number.
    const Cpu *mine = nullptr;
    uint32_t passed = 0;
    for (uint32_t n = 0; n < (one_node ? 1 : kMostCpus) && mine == nullptr && passed < chosen; ++n)
        for (uint32_t t = 0; t <= top && mine == nullptr; ++t)
            for (uint32_t i = 0; i < p.count && mine == nullptr; ++i)
                if (p.cpus[i].node == (home + n) % kMostCpus && tier(p.cpus[i]) == t && passed++ == place)
                    mine = &p.cpus[i];
    if (mine == nullptr) return false;
    bool shared = false, other = false;  // some core has several hyperthreads; some processor is left out
    for (uint32_t i = 0; i < p.count; ++i) shared = shared || p.cpus[i].thread > 0;
    const bool own = shared && top < 2 && chosen == threads;
    *out = {};
    for (uint32_t i = 0; i < p.count; ++i) {
        const Cpu &cpu = p.cpus[i];
        const bool fits = own ? cpu.core == mine->core : cpu.node == mine->node && tier(cpu) <= top;
        if (fits) out->add(cpu.number);
        other = other || !fits;
    }
    return other;
}

bool pinning_wanted() {
    const char *wanted = getenv("RWKV_PIN");
    return wanted == nullptr || strcmp(wanted, "0") != 0;
}

}  // namespace rwkvflow

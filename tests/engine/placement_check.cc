// Answers about machines that are a tree of files: where threads would go there. One question a line, "ROOT ALLOWED
// THREADS HERE", and one answer a line: processors, cores, performance cores, nodes, quota, threads unless told, and
// the places of each thread ("-" for anywhere).
#include <stdio.h>
#include <stdlib.h>

#include "base/processors.h"

using namespace rwkvflow;

int main() {
    static Processors p;
    static char root[4096], allowed[8192], where[8192];
    unsigned threads, here;
    while (scanf("%4095s %8191s %u %u", root, allowed, &threads, &here) == 4) {
        CpuSet mask;
        if (!parse_cpus(allowed, &mask)) return 1;
        read_processors(root, mask, &p);
        printf("%u %u %u %u %.3f %u", p.count, p.cores, p.performance, p.nodes, p.quota, best_threads(p));
        for (unsigned i = 0; i < threads; ++i) {
            CpuSet set;
            const bool placed = place_thread(p, threads, i, here, &set);
            format_cpus(set, where, sizeof where);
            printf(" %s", placed ? where : "-");
        }
        puts("");
        fflush(stdout);
    }
    return 0;
}

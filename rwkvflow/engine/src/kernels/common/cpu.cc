// Which kernels this processor and this operating system can run, asked of them directly.
#include <stdlib.h>
#include <string.h>

#include "kernels/common/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

#include "kernels/common/amx_facts.h"
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace rwkvflow {

namespace {

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned part) {
    Registers r = {};
    __cpuid_count(leaf, part, r.a, r.b, r.c, r.d);
    return r;
}

bool has(unsigned value, unsigned bit) { return ((value >> bit) & 1) != 0; }

// Dot products of bytes in 256-bit registers, in AVX2's encoding.
bool x86_vnni() { return cpuid(0, 0).a >= 7 && cpuid(7, 0).a >= 1 && has(cpuid(7, 1).a, 4); }

// The register XCR0: what the operating system saves. Only where CPUID 1 has bit 27 of C.
unsigned saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// 1: AVX2, FMA and F16C; 2: also AVX-512 F, BW, DQ, VL and VNNI. Both with the operating system saving the registers.
int x86_level() {
    if (cpuid(0, 0).a < 7) return 0;
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
    if (!has(one.c, 27) || !has(one.c, 28) || !has(one.c, 12) || !has(one.c, 29) || !has(seven.b, 5)) return 0;
    const unsigned low = saved_registers();
    if ((low & 0x6) != 0x6) return 0;
    const bool wide = has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31) && has(seven.c, 11);
    return wide && (low & 0xe6) == 0xe6 ? 2 : 1;
}

bool runs_avx2() { return x86_level() >= 1; }
bool runs_avxvnni() { return x86_level() >= 1 && x86_vnni(); }
bool runs_avx512() { return x86_level() >= 2; }

// Linux lets a program use tiles once it has asked, for then there is more of every thread to save; it may say no. What
// others have to be asked for is not known here.
bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

bool runs_amx() {
    if (!runs_avx512() || cpuid(0, 0).a < 0x1d) return false;
    const Registers palette = cpuid(0x1d, 1);
    const AmxFacts facts = {cpuid(7, 0).d,   saved_registers(),   cpuid(0x1d, 0).a,
                            palette.a >> 16, palette.b & 0xffffu, palette.c & 0xffffu};
    return amx_usable(facts) && tiles_permitted();
}

#elif defined(__aarch64__)

#if defined(__linux__)
bool has_dot_product() { return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; }       // HWCAP_ASIMDDP
bool has_matrix_products() { return (getauxval(AT_HWCAP2) & (1ul << 13)) != 0; }  // HWCAP2_I8MM
#elif defined(__APPLE__)
bool has_dot_product() { return true; }  // every Apple processor that macOS for ARM runs on
bool has_matrix_products() {
    int answer = 0;
    size_t size = sizeof answer;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &answer, &size, nullptr, 0) == 0 && answer != 0;
}
#else
bool has_dot_product() { return false; }
bool has_matrix_products() { return false; }
#endif

bool runs_neon() { return has_dot_product(); }
bool runs_i8mm() { return has_dot_product() && has_matrix_products(); }

#endif

bool runs_generic() { return true; }
bool runs_nowhere() { return false; }

#define RWKV_SET_HERE(name, Table, label) {#name, label, &kKernels##Table, runs_##name},
#define RWKV_SET_ELSEWHERE(name, Table, label) {#name, label, nullptr, runs_nowhere},
constexpr KernelSet kSets[] = {RWKV_SETS_HERE(RWKV_SET_HERE) RWKV_SETS_ELSEWHERE(RWKV_SET_ELSEWHERE)};
constexpr size_t kSetCount = sizeof kSets / sizeof kSets[0];

const Kernels *decide() {
    const char *wanted = getenv("RWKV_KERNELS");
    if (wanted != nullptr) {
        const Kernels *chosen = kernels_named(wanted);
        if (chosen != nullptr) return chosen;
    }
    for (size_t i = kSetCount; i-- > 0;)  // the best of them come last
        if (kSets[i].runs()) return kSets[i].table;
    return &kKernelsGeneric;
}

}  // namespace

#if defined(__x86_64__) || defined(_M_X64)
bool amx_usable(const AmxFacts &facts) {
    const bool there = has(facts.features, 24) && has(facts.features, 25);  // AMX-TILE, AMX-INT8
    const bool saved = has(facts.saved, 17) && has(facts.saved, 18);        // XTILECFG, XTILEDATA
    return there && saved && facts.palettes >= 1 && facts.tile_bytes == 1024 && facts.row_bytes == 64 &&
           facts.rows == 16;
}
#endif

const KernelSet *kernel_sets(size_t *count) {
    *count = kSetCount;
    return kSets;
}

const Kernels *kernels_named(const char *name) {
    for (const KernelSet &set : kSets)
        if (strcmp(set.name, name) == 0) return set.runs() ? set.table : nullptr;
    return nullptr;
}

const Kernels *kernels() {
    static const Kernels *chosen = nullptr;
    const Kernels *now = __atomic_load_n(&chosen, __ATOMIC_ACQUIRE);
    if (now == nullptr) {
        now = decide();  // the same in every thread, so it does not matter who stores it
        __atomic_store_n(&chosen, now, __ATOMIC_RELEASE);
    }
    return now;
}

}  // namespace rwkvflow

// What quantize.cc and quantize_k.cc share: each writer is compiled for the baseline and for AVX2, and the processor
// decides.
#pragma once

#include "quantize/quantize.h"

// RWKVFLOW_BASELINE leaves the AVX2 versions out; the tests compare.
#if defined(__x86_64__) && !defined(RWKVFLOW_BASELINE)
#include <cpuid.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace rwkvflow {
namespace {

constexpr uint32_t kMagnitude = 0x7fffffffu;

#if defined(__x86_64__) && !defined(RWKVFLOW_BASELINE)
#define HAVE_AVX2 1
#define AVX2 __attribute__((target("avx2")))

bool detect_avx2() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX)) return false;
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6u) != 6u) return false;  // the system saves XMM and YMM registers
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

bool have_avx2() {
    static int known = 0;  // 0 not asked, 1 no, 2 yes; several threads would store the same
    int state = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (state == 0) {
        state = detect_avx2() ? 2 : 1;
        __atomic_store_n(&known, state, __ATOMIC_RELAXED);
    }
    return state == 2;
}
#endif

}  // namespace
}  // namespace rwkvflow

#ifdef HAVE_AVX2
#define DEFINE_WRITER(name, body)                                                              \
    static AVX2 bool name##_avx2(const float *src, void *dst, uint64_t count) { return body; } \
    bool name(const float *src, void *dst, uint64_t count) {                                   \
        if (have_avx2()) return name##_avx2(src, dst, count);                                  \
        return body;                                                                           \
    }
#else
#define DEFINE_WRITER(name, body) \
    bool name(const float *src, void *dst, uint64_t count) { return body; }
#endif

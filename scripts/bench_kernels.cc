// How fast the kernels multiply matrices of each type that lie in the caches, on one thread: GB of weights a second for
// a single token, and billions of multiplications a second for a single token and for 128, these also as a share of
// what the instructions give in a loop of nothing but multiply-adds. In time of the processor, so other programs
// disturb it little; the best of some rounds. Built in the place of a program of the tests:
//
//     cmake -S rwkvflow/engine -B build/kernels -DRWKV_CHECK=$PWD/scripts/bench_kernels.cc && cmake --build
//     build/kernels build/kernels/rwkv-check [COLUMNS [KERNELS...]]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/common/kernels.h"
#include "quantize/quantize.h"

using namespace rwkvflow;

static constexpr uint32_t kRows = 256, kTokens = kMostTokens;

static double now() {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

template <typename T>
static T *make(size_t count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    T *out = static_cast<T *>(aligned_alloc(64, bytes));
    memset(out, 0, bytes);
    return out;
}

static float number(size_t i) { return static_cast<float>(i * 2654435761u % 2001) / 1000.0f - 1.0f; }

static double seconds(const Kernels *k, const Matrix &w, const Activations &x, uint32_t tokens, float *y,
                      void *scratch) {
    if (w.type > 1) k->quantize(&x, 0, tokens, tokens, 0, w.cols);
    const int times = tokens == 1 ? 64 : 4;
    double best = 1e9;
    for (int round = 0; round < 15; ++round) {
        const double start = now();
        for (int i = 0; i < times; ++i) k->matmul(&w, &x, tokens, 0, kRows, y, kRows, scratch);
        const double spent = (now() - start) / times;
        best = spent < best ? spent : best;
    }
    return best;
}

static double most(const Kernels *k, Products kind) {
    double best = 0;
    for (int round = 0; round < 15; ++round) {
        const double start = now();
        const double done = static_cast<double>(k->most_products(kind, 1u << 16));
        const double rate = done / (now() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

static void measure(const Kernels *k, const char *name, int32_t type, uint32_t cols, double most) {
    const uint64_t bytes = row_bytes(type, cols);
    uint8_t *data = make<uint8_t>(bytes * kRows);
    float *w = make<float>(cols);
    for (uint32_t r = 0; r < kRows; ++r) {
        for (uint32_t c = 0; c < cols; ++c) w[c] = number(r * size_t{cols} + c);
        quantize_row(type, w, data + bytes * r, cols);
    }
    Activations x = {};
    x.stride = stride_for(cols);
    const size_t all = static_cast<size_t>(x.stride) * kTokens, blocks = all / kSlice;
    x.f = make<float>(all);
    x.q = make<int8_t>(all);
    x.d = make<float>(blocks * kBlockScales);
    x.s = make<float>(blocks * kBlockScales);
    x.n = make<int32_t>(blocks * kBlockSums);
    for (size_t i = 0; i < all; ++i) x.f[i] = number(i * 7);
    float *y = make<float>(size_t{kRows} * kTokens);
    uint8_t *scratch = make<uint8_t>(scratch_bytes(cols));
    const Matrix matrix = {data, bytes, kRows, cols, type};
    const double one = seconds(k, matrix, x, 1, y, scratch), many = seconds(k, matrix, x, kTokens, y, scratch);
    const double products = static_cast<double>(kRows) * cols;
    printf("%-8s %-7s %6.1f GB/s %7.1f G/s %8.1f G/s %5.0f%%\n", k->name, name,
           static_cast<double>(bytes * kRows) / one * 1e-9, products / one * 1e-9, products * kTokens / many * 1e-9,
           100 * products * kTokens / many / most);
    void *const allocated[] = {data, w, x.f, x.q, x.d, x.s, x.n, y, scratch};
    for (void *each : allocated) free(each);
}

int main(int argc, char **argv) {
    const uint32_t cols = argc > 1 ? static_cast<uint32_t>(atoi(argv[1])) : 1024;
    if (cols == 0 || cols % 256 != 0 || cols > 65536) return puts("columns: a multiple of 256"), 2;
    size_t count;
    const KernelSet *sets = kernel_sets(&count);
    const struct {
        const char *name;
        int32_t type;
        Products products;
    } types[] = {{"F32", kF32, kFloats},       {"F16", kF16, kFloats},       {"Q8_0", kQ8_0, kBytes},
                 {"Q5_1", kQ5_1, kSmallBytes}, {"Q5_0", kQ5_0, kSmallBytes}, {"Q4_1", kQ4_1, kSmallBytes},
                 {"Q4_0", kQ4_0, kSmallBytes}, {"Q6_K", kQ6_K, kBytes},      {"Q5_K", kQ5_K, kSmallBytes},
                 {"Q4_K", kQ4_K, kSmallBytes}, {"Q3_K", kQ3_K, kBytes},      {"Q2_K", kQ2_K, kBytes},
                 {"IQ4_XS", kIQ4_XS, kBytes},  {"IQ4_NL", kIQ4_NL, kBytes},  {"IQ3_S", kIQ3_S, kBytes},
                 {"IQ3_XXS", kIQ3_XXS, kBytes}};
    printf("%-8s %-7s %11s %11s %12s %6s\n", "kernels", "type", "one token", "", "128 tokens", "share");
    for (size_t s = 0; s < count; ++s) {
        bool wanted = argc <= 2;
        for (int i = 2; i < argc; ++i) wanted |= strcmp(argv[i], sets[s].name) == 0;
        if (!wanted || !sets[s].runs()) continue;
        const double rates[] = {most(sets[s].table, kFloats), most(sets[s].table, kBytes),
                                most(sets[s].table, kSmallBytes)};
        for (const auto &each : types) measure(sets[s].table, each.name, each.type, cols, rates[each.products]);
    }
    return 0;
}

// How fast the kernels multiply matrices of each type that lie in the caches, on one thread: GB of weights a second for a
// single token, and billions of multiplications a second for a single token and for 64. In time of the processor, so other
// programs disturb it little; the best of some rounds. Built in the place of a program of the tests:
//
//     cmake -S rwkvflow/engine -B build/kernels -DRWKV_CHECK=$PWD/scripts/bench_kernels.cc && cmake --build build/kernels
//     build/kernels/rwkv-check [COLUMNS [KERNELS...]]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/common/kernels.h"
#include "quantize/quantize.h"

using namespace rwkvflow;

static constexpr uint32_t kRows = 256, kTokens = 64;

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

static double seconds(const Kernels *k, const Matrix &w, const Activations &x, uint32_t tokens, float *y, void *scratch) {
    for (uint32_t t = 0; w.type > 1 && t < tokens; ++t) k->quantize(&x, t, tokens, 0, w.cols);
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

static void measure(const Kernels *k, const char *name, int32_t type, uint32_t cols) {
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
    printf("%-8s %-5s %6.1f GB/s %7.1f G/s %8.1f G/s\n", k->name, name, static_cast<double>(bytes * kRows) / one * 1e-9,
           products / one * 1e-9, products * kTokens / many * 1e-9);
    void *const allocated[] = {data, w, x.f, x.q, x.d, x.s, x.n, y, scratch};
    for (void *each : allocated) free(each);
}

int main(int argc, char **argv) {
    const uint32_t cols = argc > 1 ? static_cast<uint32_t>(atoi(argv[1])) : 1024;
    if (cols == 0 || cols % 256 != 0 || cols > 65536) return puts("columns: a multiple of 256"), 2;
    const char *const sets[] = {"generic", "avx2", "avxvnni", "avx512", "neon", "i8mm"};
    const struct {
        const char *name;
        int32_t type;
    } types[] = {{"F32", 0}, {"F16", 1}, {"Q8_0", 9}, {"Q5_1", 8}, {"Q5_0", 7}, {"Q4_1", 3}, {"Q4_0", 2}, {"Q5_K", 13}, {"Q4_K", 12}};
    printf("%-8s %-5s %11s %11s %12s\n", "kernels", "type", "one token", "", "64 tokens");
    for (const char *name : sets) {
        bool wanted = argc <= 2;
        for (int i = 2; i < argc; ++i) wanted |= strcmp(argv[i], name) == 0;
        const Kernels *k = kernels_named(name);
        if (!wanted || k == nullptr) continue;
        for (const auto &each : types) measure(k, each.name, each.type, cols);
    }
    return 0;
}

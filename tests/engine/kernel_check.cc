// Every kernel of this build that runs here against double precision, and rows, tokens and threads' shares against each other.
// Prints what is wrong, and a last line "ok N" with how many comparisons were made.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "quantize.h"

using namespace rwkvflow;

static uint64_t seed = 7;
static float random_float() {  // roughly normal
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sum += static_cast<float>(seed >> 40) / 16777216.0f - 0.5f;
    }
    return sum;
}

static void *make(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }
static int wrong = 0, compared = 0;

static void check(bool fine, const char *kernels, const char *what, int32_t type, uint32_t cols, uint32_t tokens, double error) {
    ++compared;
    if (fine) return;
    if (++wrong < 20) printf("%s: %s: type %d, %u columns, %u tokens: %g\n", kernels, what, type, cols, tokens, error);
}

static Activations activations(uint32_t cols, uint32_t tokens) {
    Activations x = {};
    x.stride = (cols + kGroupColumns - 1) / kGroupColumns * kGroupColumns;
    const size_t all = static_cast<size_t>(x.stride) * tokens;
    x.f = static_cast<float *>(make(all * 4));
    x.q = static_cast<int8_t *>(make(all));
    x.d = static_cast<float *>(make(all / 8));
    x.s = static_cast<float *>(make(all / 8));
    x.n = static_cast<int32_t *>(make(all / 2));
    memset(x.q, 0, all);
    memset(x.d, 0, all / 8);
    memset(x.s, 0, all / 8);
    memset(x.n, 0, all / 2);
    for (size_t i = 0; i < all; ++i) x.f[i] = random_float() * (i % 37 == 0 ? 20.0f : 1.0f);
    return x;
}

// What quantized inputs stand for: the same rounding in all kernels.
static float rounded(const float *block, uint32_t i) {
    float largest = 0;
    for (int j = 0; j < 32; ++j) largest = fabsf(block[j]) > largest ? fabsf(block[j]) : largest;
    if (largest == 0) return 0;
    return rintf(block[i] * (127.0f / largest)) * (largest / 127.0f);
}

static void check_shape(const Kernels *k, int32_t type, uint32_t rows, uint32_t cols, uint32_t tokens) {
    const bool quantized = type > 1;
    const uint64_t bytes = row_bytes(type, cols);
    // One past an even address, as in files, and not a byte too long for the sanitizers.
    uint8_t *file = static_cast<uint8_t *>(malloc(bytes * rows + 1));
    float *w = static_cast<float *>(make(cols * size_t{4}));
    float *dequantized = static_cast<float *>(make(rows * size_t{cols} * 4));
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t c = 0; c < cols; ++c) w[c] = random_float();
        quantize_row(type, w, file + 1 + bytes * r, cols);
        dequantize_row(type, file + 1 + bytes * r, dequantized + r * size_t{cols}, cols);
    }
    const Matrix matrix = {file + 1, bytes, rows, cols, type};
    const Activations x = activations(cols, tokens);
    if (quantized)
        for (uint32_t t = 0; t < tokens; ++t) {
            k->quantize(&x, t, 0, cols / 64 * 32);
            k->quantize(&x, t, cols / 64 * 32, cols);
        }
    void *scratch = make(scratch_bytes(cols));
    const size_t out = rows * size_t{tokens};
    float *y = static_cast<float *>(malloc(out * 4)), *again = static_cast<float *>(malloc(out * 4));
    k->matmul(&matrix, &x, tokens, 0, rows, y, rows, scratch);
    double worst = 0;
    for (uint32_t t = 0; t < tokens; ++t)
        for (uint32_t r = 0; r < rows; ++r) {
            double sum = 0, size = 1e-30;
            for (uint32_t c = 0; c < cols; ++c) {
                const float *in = x.f + t * size_t{x.stride};
                const double value = quantized ? rounded(in + c / 32 * 32, c % 32) : in[c];
                sum += value * dequantized[r * size_t{cols} + c];
                size += fabs(value * dequantized[r * size_t{cols} + c]);
            }
            const double error = fabs(sum - y[t * size_t{rows} + r]) / size;
            worst = error > worst || error != error ? error : worst;
        }
    check(worst < 1e-6, k->name, "not the product", type, cols, tokens, worst);
    // Shares of rows, and tokens one by one, are the same bits.
    const uint32_t cut = rows / 3;
    k->matmul(&matrix, &x, tokens, cut, rows, again, rows, scratch);
    k->matmul(&matrix, &x, tokens, 0, cut, again, rows, scratch);
    check(memcmp(y, again, out * 4) == 0, k->name, "depends on the rows", type, cols, tokens, 0);
    for (uint32_t t = 0; t < tokens; ++t) {
        Activations one = x;
        one.f += t * size_t{x.stride};
        one.q += t * size_t{x.stride};
        one.d += t * size_t{x.stride} / 32;
        one.s += t * size_t{x.stride} / 32;
        one.n += t * size_t{x.stride} / 8;
        k->matmul(&matrix, &one, 1, 0, rows, again, rows, scratch);
        check(memcmp(y + t * size_t{rows}, again, rows * 4) == 0, k->name, "depends on the tokens", type, cols, tokens, t);
    }
    void *const all[] = {file, w, dequantized, x.f, x.q, x.d, x.s, x.n, scratch, y, again};
    for (void *each : all) free(each);
}

int main() {
    const char *const names[] = {"generic", "avx2", "avxvnni", "avx512", "neon"};
    const int32_t types[] = {0, 1, 2, 3, 7, 8, 9, 12, 13};
    const uint32_t blocks[] = {32, 64, 96, 128, 160, 416, 1024, 2080}, odd[] = {1, 15, 17, 40, 1030}, some[] = {1, 2, 7, 13};
    const uint32_t supers[] = {256, 768, 1280};
    for (const char *name : names) {
        const Kernels *k = kernels_named(name);
        if (k == nullptr) continue;
        for (const int32_t type : types) {
            for (const uint32_t cols : blocks)
                for (const uint32_t tokens : some)
                    if (row_bytes(type, cols) != 0) check_shape(k, type, 21, cols, tokens);
            for (const uint32_t cols : supers)
                for (const uint32_t tokens : some) check_shape(k, type, 21, cols, tokens);
            check_shape(k, type, 37, 4096, kMostTokens);
        }
        for (const uint32_t cols : odd)
            for (const uint32_t tokens : some)
                for (int32_t type = 0; type < 2; ++type) check_shape(k, type, 9, cols, tokens);
    }
    printf("ok %d\n", compared);
    return wrong == 0 ? 0 : 1;
}

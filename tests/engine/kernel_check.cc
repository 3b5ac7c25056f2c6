// Every kernel of this build that runs here against double precision, and rows, tokens and threads' shares against each
// other. Prints what is wrong, for each set of kernels a line "NAME: bits DIGEST" of all that came out, which is the
// same for all that fuse products, on any processor, and a last line "ok N" with how many comparisons were made.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/common/kernels.h"
#include "quantize/quantize.h"
#if defined(RWKV_AMX_MODEL)
#include "kernels/common/amx_facts.h"
#include "kernels/x86/amx.h"
#endif

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

// One that half precision can hold: Bochs 2.7, which runs this too, makes halves with ties away from zero.
static float short_float() {
    const float value = random_float();
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0xffffe000u;
    float out;
    memcpy(&out, &bits, sizeof out);
    return fabsf(out) < 0x1p-14f ? 0.0f : out;
}

static void *make(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }
static int wrong = 0, compared = 0;

static uint64_t digest;
static void digest_of(const float *values, size_t count) {  // FNV-1a over words
    for (size_t i = 0; i < count; ++i) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        digest = (digest ^ bits) * 1099511628211u;
    }
}

static void check(bool fine, const char *kernels, const char *what, int32_t type, uint32_t cols, uint32_t tokens,
                  double error) {
    ++compared;
    if (fine) return;
    if (++wrong < 20) printf("%s: %s: type %d, %u columns, %u tokens: %g\n", kernels, what, type, cols, tokens, error);
}

static Activations activations(uint32_t cols, uint32_t tokens) {
    Activations x = {};
    x.stride = stride_for(cols);
    const uint32_t room = tokens == 1 ? 1 : (tokens + kTokenUnit - 1) / kTokenUnit * kTokenUnit;
    const size_t all = static_cast<size_t>(x.stride) * room;
    x.f = static_cast<float *>(make(all * 4));
    x.q = static_cast<int8_t *>(make(all));
    const size_t scales = all / kSlice * kBlockScales * sizeof(float),
                 sums = all / kSlice * kBlockSums * sizeof(int32_t);
    x.d = static_cast<float *>(make(scales));
    x.s = static_cast<float *>(make(scales));
    x.n = static_cast<int32_t *>(make(sums));
    // What was there before reaches no result.
    memset(x.q, 0x55, all);
    memset(x.d, 0xff, scales);
    memset(x.s, 0xff, scales);
    memset(x.n, 0x55, sums);
    for (size_t i = 0; i < all; ++i) x.f[i] = random_float() * (i % 37 == 0 ? 20.0f : 1.0f);
    return x;
}

// What quantized inputs stand for: the same rounding in all kernels.
static void round_block(const float *block, float *out) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = fabsf(block[i]) > largest ? fabsf(block[i]) : largest;
    for (int i = 0; i < 32; ++i) out[i] = largest == 0 ? 0 : rintf(block[i] * (127.0f / largest)) * (largest / 127.0f);
}

static void check_shape(const Kernels *k, int32_t type, uint32_t rows, uint32_t cols, uint32_t tokens) {
    const bool quantized = type > 1;
    const uint64_t bytes = row_bytes(type, cols);
    // One past an even address, as in files, and not a byte too long for the sanitizers.
    uint8_t *file = static_cast<uint8_t *>(malloc(bytes * rows + 1));
    float *w = static_cast<float *>(make(cols * size_t{4}));
    float *dequantized = static_cast<float *>(make(rows * size_t{cols} * 4));
    for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t c = 0; c < cols; ++c) w[c] = type == 1 ? short_float() : random_float();
        quantize_row(type, w, file + 1 + bytes * r, cols);
        dequantize_row(type, file + 1 + bytes * r, dequantized + r * size_t{cols}, cols);
    }
    const Matrix matrix = {file + 1, bytes, rows, cols, type};
    const Activations x = activations(cols, tokens);
    // However tokens and columns are cut.
    const uint32_t half = cols / 64 * 32, cuts[] = {0, tokens / 3, tokens - tokens / 4, tokens};
    for (int i = 0; quantized && i < 3; ++i) {
        k->quantize(&x, cuts[i], cuts[i + 1], tokens, 0, half);
        k->quantize(&x, cuts[i], cuts[i + 1], tokens, half, cols);
    }
    void *scratch = make(scratch_bytes(cols));
    const size_t out = rows * size_t{tokens};
    float *y = static_cast<float *>(malloc(out * 4)), *again = static_cast<float *>(malloc(out * 4));
    k->matmul(&matrix, &x, tokens, 0, rows, y, rows, scratch);
    double worst = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
        memcpy(w, x.f + t * size_t{x.stride}, cols * sizeof(float));
        for (uint32_t c = 0; quantized && c < cols; c += 32) round_block(x.f + t * size_t{x.stride} + c, w + c);
        for (uint32_t r = 0; r < rows; ++r) {
            double sum = 0, size = 1e-30;
            for (uint32_t c = 0; c < cols; ++c) {
                const double product = static_cast<double>(w[c]) * dequantized[r * size_t{cols} + c];
                sum += product;
                size += fabs(product);
            }
            const double error = fabs(sum - y[t * size_t{rows} + r]) / size;
            worst = error > worst || error != error ? error : worst;
        }
    }
    check(worst < 1e-6, k->name, "not the product", type, cols, tokens, worst);
    digest_of(y, out);
    // Shares of rows, and tokens one by one, are the same bits.
    const uint32_t cut = rows / 3;
    k->matmul(&matrix, &x, tokens, cut, rows, again, rows, scratch);
    k->matmul(&matrix, &x, tokens, 0, cut, again, rows, scratch);
    check(memcmp(y, again, out * 4) == 0, k->name, "depends on the rows", type, cols, tokens, 0);
    const Activations one = activations(cols, 1);
    for (uint32_t t = 0; t < tokens; ++t) {
        memcpy(one.f, x.f + t * size_t{x.stride}, x.stride * sizeof(float));
        if (quantized) k->quantize(&one, 0, 1, 1, 0, cols);
        k->matmul(&matrix, &one, 1, 0, rows, again, rows, scratch);
        check(memcmp(y + t * size_t{rows}, again, rows * 4) == 0, k->name, "depends on the tokens", type, cols, tokens,
              t);
    }
    void *const all[] = {file,  w,     dequantized, x.f,   x.q,   x.d,     x.s, x.n,
                         one.f, one.q, one.d,       one.s, one.n, scratch, y,   again};
    for (void *each : all) free(each);
}

#if defined(RWKV_AMX_MODEL)
// What processors and systems say of AMX: Sapphire Rapids; no AMX; no products of bytes; a virtual machine that passes
// on what the processor has but saves no tiles, or only their shapes; an empty leaf; tiles of another shape.
static void check_facts() {
    const AmxFacts right = {3u << 24, 0x602e7, 1, 1024, 64, 16};
    const struct {
        AmxFacts facts;
        bool usable;
    } all[] = {
        {right, true},
        {{0, 0xe7, 0, 0, 0, 0}, false},
        {{1u << 24, 0x602e7, 1, 1024, 64, 16}, false},
        {{3u << 24, 0xe7, 1, 1024, 64, 16}, false},
        {{3u << 24, 0x202e7, 1, 1024, 64, 16}, false},
        {{3u << 24, 0x602e7, 0, 0, 0, 0}, false},
        {{3u << 24, 0x602e7, 1, 512, 64, 8}, false},
        {{3u << 24, 0x602e7, 1, 1024, 32, 16}, false},
    };
    for (const auto &each : all)
        check(amx_usable(each.facts) == each.usable, "amx", "other facts", 0, 0, each.facts.saved, 0);
}
#endif

// "amx-model" is the set `amx` over a model of its tiles: it runs where avx512 does.
static const Kernels *chosen_kernels(const char *name, bool lent) {
#if defined(RWKV_AMX_MODEL)
    if (strcmp(name, "amx-model") == 0) {
        static Kernels model;
        const Kernels *most = kernels_named("avx512");
        if (most == nullptr) return nullptr;
        model = *most;
        model.name = "amx-model";
        model.matmul = amx_model_matmul;
        model.quantize = amx_model_quantize;
        return &model;
    }
#endif
    if (lent) {
        size_t count;
        const KernelSet *sets = kernel_sets(&count);
        for (size_t i = 0; i < count; ++i)
            if (strcmp(sets[i].name, name) == 0) return sets[i].table;
    }
    return kernels_named(name);
}

// Arguments name kernels, which then must run here. For processors that are emulated there are "quick", which leaves
// out the larger shapes and some of the others, and "lent": AVX-VNNI is there although the processor does not say so.
int main(int argc, char **argv) {
    size_t count;
    const KernelSet *sets = kernel_sets(&count);
    const int32_t types[] = {kF32,  kF16,  kQ4_0, kQ4_1, kQ5_0,   kQ5_1,   kQ8_0,    kQ4_K,
                             kQ5_K, kQ2_K, kQ3_K, kQ6_K, kIQ4_NL, kIQ4_XS, kIQ3_XXS, kIQ3_S};
    const uint32_t blocks[] = {32, 64, 96, 128, 160, 416, 1024, 2080}, odd[] = {1, 15, 17, 40, 1030},
                   some[] = {1, 2, 3, 4, 7, 13, 35};
    const uint32_t supers[] = {256, 768, 1280};
    bool quick = false, all = true;
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "quick") == 0) quick = true;
        else if (strcmp(argv[i], "lent") != 0) all = false;
    }
    const auto named = [&](const char *name) {
        for (int i = 1; i < argc; ++i)
            if (strcmp(argv[i], name) == 0) return true;
        return false;
    };
    const auto skipped = [&](uint32_t cols, uint32_t tokens) {
        if (tokens == 35) return cols != 160 && cols != 768;  // some tiles and a rest
        return quick && (cols > 768 || cols == 32 || cols == 128 || ((tokens == 2 || tokens == 3) && cols != 96));
    };
    uint64_t fused = 0;
    const char *names[16];
    size_t n = 0;
    for (; n < count; ++n) names[n] = sets[n].name;
#if defined(RWKV_AMX_MODEL)
    names[n++] = "amx-model";
    check_facts();
#endif
    for (size_t i = 0; i < n; ++i) {
        const char *name = names[i];
        if (!all && !named(name)) continue;
        const Kernels *k = chosen_kernels(name, named("lent") && strcmp(name, "avxvnni") == 0);
        if (k == nullptr) {
            if (!all) check(false, name, "cannot run here", 0, 0, 0, 0);
            continue;
        }
        seed = 7;
        digest = 14695981039346656037u;
        for (const int32_t type : types) {
            for (const uint32_t cols : blocks)
                for (const uint32_t tokens : some)
                    if (row_bytes(type, cols) != 0 && !skipped(cols, tokens)) check_shape(k, type, 21, cols, tokens);
            for (const uint32_t cols : supers)
                for (const uint32_t tokens : some)
                    if (!skipped(cols, tokens)) check_shape(k, type, 21, cols, tokens);
            if (!quick) check_shape(k, type, 21, 4096, kMostTokens);
            // More rows than are worked on together, and a rest; columns in parts, and a rest.
            if (!quick) check_shape(k, type, kFloatRows + 21, 3 * kFloatPart - 256, 19);
        }
        for (const uint32_t cols : odd)
            for (const uint32_t tokens : some)
                for (int32_t type = 0; type < 2; ++type)
                    if (!skipped(cols, tokens)) check_shape(k, type, 9, cols, tokens);
#if defined(RWKV_AMX_MODEL)
        if (strcmp(name, "amx-model") == 0)
            check(amx_model_multiplied() > (quick ? 1000u : 10000u), name, "tiles were not multiplied", 0, 0, 0, 0);
#endif
        printf("%s: bits %016llx\n", name, static_cast<unsigned long long>(digest));
        if (strcmp(name, "generic") == 0) continue;
        check(fused == 0 || fused == digest, name, "other bits than the kernels before", 0, 0, 0, 0);
        fused = digest;
    }
    printf("ok %d\n", compared);
    return wrong == 0 ? 0 : 1;
}

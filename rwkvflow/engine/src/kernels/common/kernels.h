// The arithmetic of the engine, once for each instruction set: generic.cc, and avx2.cc, avxvnni.cc and avx512.cc in
// kernels/x86/, neon.cc and i8mm.cc in kernels/arm/, compile body.inc with their own flags and fill in the few parts
// that need intrinsics. amx.cc has but the quantized products with many tokens; the rest of its set is avx512.cc's.
//
// In any of them what a row, a channel or a head comes to does not depend on which others, or how many tokens, are
// worked on with it: so neither the number of threads, nor how rows are shared out, nor how a sequence is cut reaches a
// result. Nor does the instruction set: every sum has its order, integers are exact, and exp and tanh are our own. Only
// the generic kernels differ from all others in the last bits, as they do not fuse products with sums.
//
// This header is included by files with different flags: no inline functions here, or the linker could keep the copy
// with the newer instructions for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/common/sets.h"

// A function that is optimized by itself: as part of all those around it, it would be again in each of them, which took
// a quarter of the time that the kernels are compiled in.
#define RWKV_ONCE __attribute__((noinline))

namespace rwkvflow {

inline constexpr uint32_t kSlice = 32;  // columns are shared out in units of this; also the length of a quantized block

// Weights as they stand in the file, at any address: rows of row_bytes, cols elements each.
struct Matrix {
    const uint8_t *data;
    uint64_t row_bytes;
    uint32_t rows, cols;
    int32_t type;
};

// The inputs of a matrix for several tokens. f holds `stride` floats a token, and what is beyond the columns of a
// matrix is finite. For quantized weights the rest holds the same in 8 bits, in an order that the kernels choose, which
// is another one for a single token: q, a scale d for each block of kSlice, and what follows from the sums of blocks: s
// and n.
inline constexpr uint32_t kGroupColumns = 256;
inline constexpr uint32_t kTokenUnit = 8;    // room comes in multiples of so many tokens, where it is for several
inline constexpr uint32_t kBlockScales = 2;  // elements of d, and of s, for each block of a token
inline constexpr uint32_t kBlockSums = 6;    // of n
// Not a multiple of a large power of two: the same column of several tokens would get in each other's way in caches.
constexpr uint32_t stride_for(uint32_t columns) {
    return ((columns + kGroupColumns - 1) / kGroupColumns | 1) * kGroupColumns;
}
struct Activations {
    float *f;
    int8_t *q;
    float *d, *s;
    int32_t *n;
    uint32_t stride;
};

inline constexpr uint32_t kMostTokens = 128;  // that a matrix is multiplied with at once

// Memory that matmul needs for itself, for matrices of up to that many columns: some rows in another form. Floats are
// worked on by parts of kFloatPart columns where there are more than kFloatWhole, and the sums of parts wait there.
inline constexpr uint32_t kQuantizedRows = 18, kFloatRows = 64, kFloatPart = 512, kFloatWhole = 1024;
constexpr uint64_t scratch_bytes(uint64_t cols) {
    const uint64_t floats = kFloatRows * (kFloatWhole * 4 + kMostTokens * 64);
    const uint64_t quantized = kQuantizedRows * (cols + kGroupColumns) * 4;
    return floats > quantized ? floats : quantized;
}

// What there is to multiply: floats; bytes of any value, widened and added in 32 bits; bytes of which one is of at most
// four bits, where that takes less.
enum Products { kFloats, kBytes, kSmallBytes };

// A head of version 7, and one token; all of n floats, states of n * n. State[j][i]: j of the key, i of the value. With
// c[i] = sum_j S[j][i] * kk[j]: S[j][i] = S[j][i] * w[j] + c[i] * b[j] + v[i] * k[j]; out[i] = sum_j S[j][i] * r[j].
// The c of the token that goes on from this state is worked out with it, so that a state is read once a token.
struct Head7 {
    const float *r, *w, *k, *v, *kk, *b, *in;
    float *state, *out;
    bool fresh;         // whether nobody has worked c out; else it is in `out`
    const float *next;  // kk of the token that goes on from `state`, or null
    float *next_out;    // where c of that token goes
};

struct Kernels {
    const char *name;

    // y[t * ldy + row] = sum over c of w[row][c] * x[t][c], for row0 <= row < row1 and t < tokens <= kMostTokens.
    // Quantized weights read what quantize made for as many tokens (one, or more). scratch: the thread's own, 64-byte
    // aligned, scratch_bytes() of it.
    void (*matmul)(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y,
                   uint32_t ldy, void *scratch);
    // Makes the 8-bit form of the tokens [t0, t1) of `tokens` from f for columns [c0, c1), both multiples of kSlice.
    void (*quantize)(const Activations *x, uint32_t t0, uint32_t t1, uint32_t tokens, uint32_t c0, uint32_t c1);

    // mean and 1 / sqrt(variance + eps) of n floats.
    void (*moments)(const float *x, uint32_t n, float eps, float *mean, float *scale);
    // out = (x - mean) * scale * w + b
    void (*normalize)(const float *x, float mean, float scale, const float *w, const float *b, float *out, uint32_t n);
    // out = x + (before - x) * mix, and with more: mix + more
    void (*shift)(const float *x, const float *before, const float *mix, const float *more, float *out, uint32_t n);
    void (*add)(float *x, const float *y, uint32_t n);                           // x += y
    void (*add_gated)(float *x, const float *gate, const float *y, uint32_t n);  // x += sigmoid(gate) * y
    void (*relu_squared)(float *x, uint32_t n);                                  // x = max(x, 0)^2
    void (*sigmoid)(float *x, const float *bias, uint32_t n);  // x = sigmoid(x + bias); bias may be null
    void (*tanh)(float *x, uint32_t n);
    void (*multiply)(float *x, const float *y, uint32_t n);          // x *= y
    void (*multiply_silu)(float *x, const float *gate, uint32_t n);  // x *= gate * sigmoid(gate)
    void (*decay6)(float *w, const float *bias, uint32_t n);         // w = exp(-exp(w + bias))
    void (*decay7)(float *w, const float *bias, uint32_t n);         // w = exp(-exp(-0.5) * sigmoid(w + bias))

    // Version 4, channel by channel: the state is (a, b, p); out = sigmoid(r) * wkv. decay is -exp(time_decay).
    void (*wkv4)(const float *r, const float *k, const float *v, const float *first, const float *decay,
                 const float *const in[3], float *const state[3], float *out, uint32_t n);
    // Versions 5 and 6, one head of size n. State[i][j]: i of the key, j of the value.
    // out[j] = sum_i r[i] * (first[i] * k[i] * v[j] + S[i][j]); S[i][j] = S[i][j] * decay[i] + k[i] * v[j].
    void (*wkv5)(const float *r, const float *k, const float *v, const float *first, const float *decay,
                 const float *in, float *state, float *out, uint32_t n);
    // Version 7, before wkv7, one head: kk = k * k_k made of length 1; b = kk * a; k *= 1 + (a - 1) * k_a; kk = -kk.
    void (*prepare7)(float *k, const float *a, const float *k_k, const float *k_a, float *kk, float *b, uint32_t n);
    // x += (first - x) * mix
    void (*lerp)(float *x, const float *first, const float *mix, uint32_t n);
    // Version 7, one head and token.
    void (*wkv7)(const Head7 *head, uint32_t n);
    // Version 7, one head: out += v * sum_i r[i] * k[i] * r_k[i]
    void (*bonus7)(const float *r, const float *k, const float *r_k, const float *v, float *out, uint32_t n);

    // For choosing tokens: adds exp((x - largest) / temperature) of n doubles, each at most `largest`, to `sum` one
    // after the other; returns the last sum. out: where every sum goes; null, or x itself. The generic kernels, too,
    // give the bits of all others here.
    double (*running)(const double *x, uint32_t n, double largest, double temperature, double sum, double *out);

    // For measuring: rounds of nothing but multiply-adds, and how many of them there were.
    uint64_t (*most_products)(Products kind, uint32_t rounds);
};

#define RWKV_DECLARE(name, Table, label) extern const Kernels kKernels##Table;
RWKV_SETS_HERE(RWKV_DECLARE)
#undef RWKV_DECLARE

// A set of kernels. Those of other architectures have no table, and do not run.
struct KernelSet {
    const char *name, *label;
    const Kernels *table;
    bool (*runs)();  // whether this processor and operating system can run it; asked of them directly
};

// All of sets.h, in its order; *count is their number.
const KernelSet *kernel_sets(size_t *count);

// The best ones that this processor and operating system can run; RWKV_KERNELS=NAME in the environment names others,
// and is ignored where they would not run. Decided once.
const Kernels *kernels();
// By name; null where they are not in this build or would not run here.
const Kernels *kernels_named(const char *name);

}  // namespace rwkvflow

// The body of every kernels_*.cc: see kernels.h. Before including it a file defines RWKV_KERNELS_TABLE (the table's name),
// RWKV_KERNELS_NAME (text), and in namespace rwkvflow::{anonymous} the parts that its instruction set has a better way for:
// RWKV_HAS_FUSED (fused: 16 and 8 lanes), RWKV_HAS_HALF (load_half16, half_scale), RWKV_HAS_SUM4 (sum4), or
// RWKV_QUANTIZED_KERNELS, a header with another matmul_type and quantize, and RWKV_HAS_QUANTIZE where that does not need
// what it is made of in kernels_quantized.h.
//
// Everything is in an anonymous namespace on purpose: see kernels.h.
#pragma once

#include <string.h>

#include "kernels.h"
#include "kernels_math.h"
#include "kernels_types.h"

namespace rwkvflow {
namespace {

#if !defined(RWKV_HAS_FUSED)
inline V16 fused(V16 a, V16 b, V16 c) { return a * b + c; }
inline V8 fused(V8 a, V8 b, V8 c) { return a * b + c; }
#endif
// How many rows and tokens are worked on together: their sums have to fit into the registers.
#if !defined(RWKV_TILE_ROWS)
#define RWKV_TILE_ROWS 2
#define RWKV_TILE_TOKENS 2
#endif

#if !defined(RWKV_HAS_HALF)
inline V16 load_half16(const uint8_t *at) {
    uint16_t half[16];
    memcpy(half, at, sizeof half);
    U16 bits;
    for (int i = 0; i < 16; ++i) bits[i] = half[i];
    const U16 rest = bits & 0x7fffu;
    const U16 normal = (rest << 13) + (rest >= 0x7c00u ? splat_bits(0x70000000u) : splat_bits(0x38000000u));
    const U16 small = as_bits(as_float(splat_bits(0x3f000000u) | rest) - splat(0.5f));
    return as_float(((bits & 0x8000u) << 16) | (rest < 0x400u ? small : normal));
}
inline float half_scale(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    const uint32_t rest = half & 0x7fffu;
    const uint32_t normal = (rest << 13) + (rest >= 0x7c00u ? 0x70000000u : 0x38000000u);
    const uint32_t shifted = 0x3f000000u | rest;
    float value;
    memcpy(&value, &shifted, 4);
    value -= 0.5f;
    uint32_t small;
    memcpy(&small, &value, 4);
    const uint32_t bits = (static_cast<uint32_t>(half & 0x8000u) << 16) | (rest < 0x400u ? small : normal);
    memcpy(&value, &bits, 4);
    return value;
}
#endif

#if !defined(RWKV_HAS_SUM4)
// out[i] = sum of the lanes of v[i], in the order of sum_lanes16.
inline void sum4(const V16 v[4], float out[4]) {
    for (int i = 0; i < 4; ++i) out[i] = sum_lanes16(v[i]);
}
#endif

// Weights of a single token come from memory, and come fastest in the order in which they stand there, a row after the other,
// asked for this far ahead. Rows taken side by side, as for many tokens, are slower to stream by a third (measured on Zen 5).
constexpr size_t kAhead = 4096;  // bytes
inline void prefetch(const void *at) { __builtin_prefetch(static_cast<const char *>(at) + kAhead, 0, 3); }

// With many tokens, rows are read and then worked on for long. Meanwhile the memory brings those that come next, a piece with
// every few tokens.
struct Next {
    const uint8_t *at;
    uint64_t bytes;
    void prefetch(uint32_t token, uint32_t count, uint32_t tokens) const {
        const uint64_t end = bytes * (token + count) / tokens;
        for (uint64_t i = bytes * token / tokens / 64 * 64; i < end; i += 64) __builtin_prefetch(at + i, 0, 2);
    }
};

}  // namespace
}  // namespace rwkvflow

#include "kernels_floats.h"
#include "kernels_recurrent.h"
#include "kernels_quantized.h"
#if defined(RWKV_QUANTIZED_KERNELS)
#include RWKV_QUANTIZED_KERNELS
#else
#include "kernels_blocks.h"
#endif

namespace rwkvflow {
namespace {

void matmul(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y, uint32_t ldy,
            void *scratch) {
    const Product product = {w, x, tokens, row0, row1, y, ldy, scratch};
    if (w->type == 0) matmul_floats<false>(product);
    else if (w->type == 1) matmul_floats<true>(product);
    else matmul_quantized(product);
}

}  // namespace
extern const Kernels RWKV_KERNELS_TABLE;
const Kernels RWKV_KERNELS_TABLE = {
    RWKV_KERNELS_NAME, matmul,        quantize, moments, normalize, shift, add,  add_gated, relu_squared, sigmoid, hyperbolic_tangent,
    multiply,          multiply_silu, decay6,   decay7,  wkv4,      wkv5,  prepare7, lerp,  wkv7,         bonus7,
};
}  // namespace rwkvflow

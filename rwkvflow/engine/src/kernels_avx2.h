// Kernels for x86-64 with AVX2, FMA and F16C: all of kernels_avx2.cc and kernels_avxvnni.cc, but for the table's name.
#pragma once

#include <immintrin.h>

#include "kernels_math.h"

#define RWKV_HAS_HALF
#define RWKV_HAS_FUSED
#define RWKV_HAS_QUANTIZE
#define RWKV_TILE_ROWS 2
#define RWKV_TILE_TOKENS 3
#define RWKV_QUANTIZED_KERNELS "kernels_avx2_blocks.h"
#include "kernels_x86.h"

namespace rwkvflow {
namespace {

inline V16 load_half16(const uint8_t *at) {
    const __m256 parts[2] = {
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at))),
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at + 16))),
    };
    V16 out;
    memcpy(&out, parts, sizeof out);
    return out;
}

inline V8 fused(V8 a, V8 b, V8 c) {
    return reinterpret_cast<V8>(
        _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
}
inline V16 fused(V16 a, V16 b, V16 c) {
    V8 parts[3][2];
    memcpy(parts[0], &a, sizeof a);
    memcpy(parts[1], &b, sizeof b);
    memcpy(parts[2], &c, sizeof c);
    const V8 sums[2] = {fused(parts[0][0], parts[1][0], parts[2][0]), fused(parts[0][1], parts[1][1], parts[2][1])};
    V16 out;
    memcpy(&out, sums, sizeof out);
    return out;
}

}  // namespace
}  // namespace rwkvflow

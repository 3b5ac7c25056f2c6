// Kernels for 64-bit ARM: all of kernels_neon.cc and kernels_neon_i8mm.cc, but for the table's name.
#pragma once

#include <arm_neon.h>

#include "kernels_math.h"
#include "kernels_types.h"

#define RWKV_HAS_FUSED
#define RWKV_HAS_HALF
#define RWKV_QUANTIZED_KERNELS "kernels_neon_blocks.h"

namespace rwkvflow {
namespace {

inline V16 load_half16(const uint8_t *at) {
    float32x4_t parts[4];
    for (int i = 0; i < 4; ++i) {
        float16x4_t half;
        memcpy(&half, at + 8 * i, sizeof half);
        parts[i] = vcvt_f32_f16(half);
    }
    V16 out;
    memcpy(&out, parts, sizeof out);
    return out;
}

inline float half_scale(const uint8_t *at) {
    __fp16 half;
    memcpy(&half, at, 2);
    return static_cast<float>(half);
}

template <int LANES, typename Vector>
inline Vector fused_parts(const Vector &a, const Vector &b, const Vector &c) {
    float32x4_t parts[3][LANES / 4];
    memcpy(parts[0], &a, sizeof a);
    memcpy(parts[1], &b, sizeof b);
    memcpy(parts[2], &c, sizeof c);
    for (int i = 0; i < LANES / 4; ++i) parts[2][i] = vfmaq_f32(parts[2][i], parts[0][i], parts[1][i]);
    Vector out;
    memcpy(&out, parts[2], sizeof out);
    return out;
}
inline V16 fused(V16 a, V16 b, V16 c) { return fused_parts<16>(a, b, c); }
inline V8 fused(V8 a, V8 b, V8 c) { return fused_parts<8>(a, b, c); }

}  // namespace
}  // namespace rwkvflow

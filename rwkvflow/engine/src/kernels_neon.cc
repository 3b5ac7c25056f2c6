// Kernels for 64-bit ARM with the dot product instructions (Armv8.2 and later).
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels_math.h"
#include "kernels_types.h"

#define RWKV_HAS_FUSED
#define RWKV_HAS_HALF
#define RWKV_HAS_BLOCKS

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

// The two halves of a block's weights, less the offset.
template <int TYPE>
inline int8x16x2_t load_bytes(const uint8_t *block) {
    using B = Block<TYPE>;
    int8x16x2_t out;
    if constexpr (TYPE == kQ8_0) {
        out.val[0] = vreinterpretq_s8_u8(vld1q_u8(block + 2));
        out.val[1] = vreinterpretq_s8_u8(vld1q_u8(block + 18));
    } else {
        const uint8x16_t both = vld1q_u8(block + B::quants);
        uint8x16_t a = vandq_u8(both, vdupq_n_u8(15)), b = vshrq_n_u8(both, 4);
        if constexpr (B::five) {
            const uint8x8_t own = vcreate_u8(0x8040201008040201u);
            const uint8x16_t masks = vcombine_u8(own, own), bit = vdupq_n_u8(16);
            const uint8_t *bits = block + B::high;
            const uint8x16_t first = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
            const uint8x16_t second = vcombine_u8(vdup_n_u8(bits[2]), vdup_n_u8(bits[3]));
            a = vorrq_u8(a, vandq_u8(vtstq_u8(first, masks), bit));
            b = vorrq_u8(b, vandq_u8(vtstq_u8(second, masks), bit));
        }
        const int8x16_t offset = vdupq_n_s8(B::offset);
        out.val[0] = vsubq_s8(vreinterpretq_s8_u8(a), offset);
        out.val[1] = vsubq_s8(vreinterpretq_s8_u8(b), offset);
    }
    return out;
}

inline I8 dot_products(int8x16x2_t w, const int8_t *q) {
    const int32x4_t zero = vdupq_n_s32(0);
    const int32x4_t parts[2] = {vdotq_s32(zero, w.val[0], vld1q_s8(q)), vdotq_s32(zero, w.val[1], vld1q_s8(q + 16))};
    I8 out;
    memcpy(&out, parts, sizeof out);
    return out;
}

template <int TYPE>
inline void unpack_block(const uint8_t *block, int8_t out[32]) {
    const int8x16x2_t w = load_bytes<TYPE>(block);
    vst1q_s8(out, w.val[0]);
    vst1q_s8(out + 16, w.val[1]);
}
inline I8 byte_sums(const int8_t *w, const int8_t *q) {
    int8x16x2_t both;
    both.val[0] = vld1q_s8(w);
    both.val[1] = vld1q_s8(w + 16);
    return dot_products(both, q);
}
template <int TYPE>
inline I8 block_sums(const uint8_t *block, const int8_t *q) {
    return dot_products(load_bytes<TYPE>(block), q);
}

// The two halves of the weights of a sub-block of a super-block.
template <int TYPE>
inline int8x16x2_t load_sub(const uint8_t *at, int sub) {
    using B = Block<TYPE>;
    int8x16x2_t out;
    for (int half = 0; half < 2; ++half) {
        const uint8x16_t both = vld1q_u8(at + B::quants + sub / 2 * 32 + 16 * half);
        uint8x16_t w = sub % 2 == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
        if constexpr (B::five) {
            const uint8x16_t bits = vld1q_u8(at + B::high + 16 * half);
            const uint8x16_t set = vtstq_u8(bits, vdupq_n_u8(static_cast<uint8_t>(1 << sub)));
            w = vorrq_u8(w, vandq_u8(set, vdupq_n_u8(16)));
        }
        out.val[half] = vreinterpretq_s8_u8(w);
    }
    return out;
}
template <int TYPE>
inline void unpack_sub(const uint8_t *at, int sub, int8_t out[32]) {
    const int8x16x2_t w = load_sub<TYPE>(at, sub);
    vst1q_s8(out, w.val[0]);
    vst1q_s8(out + 16, w.val[1]);
}
template <int TYPE>
inline I8 sub_sums(const uint8_t *at, int sub, const int8_t *q) {
    return dot_products(load_sub<TYPE>(at, sub), q);
}

}  // namespace
}  // namespace rwkvflow

#define RWKV_KERNELS_TABLE kKernelsNeon
#define RWKV_KERNELS_NAME "neon"
#include "kernels_body.h"
#endif

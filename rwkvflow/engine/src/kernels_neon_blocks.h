// Products with quantized matrices for kernels_neon.h: kernels_tiles.h says what they come to. Weights are signed bytes here, less
// the offset of their type, so sums start from nothing.
#pragma once

namespace rwkvflow {
namespace {

enum : uint32_t { kLanes = 8, kTile = 4 };
typedef V8 Lanes;
typedef I8 LaneInts;

// Word j of a block of row or token `own` of `count`. Dot products take a word of four rows each, and of a token; matrix
// products take two words of two rows, and of two tokens.
#if defined(RWKV_NEON_I8MM)
constexpr size_t word_of(size_t j, size_t own, size_t count) { return j / 2 * 2 * count + own * 2 + j % 2; }
#else
constexpr size_t word_of(size_t j, size_t own, size_t count) { return j * count + own; }
#endif

}  // namespace
}  // namespace rwkvflow

#include "kernels_tiles.h"

namespace rwkvflow {
namespace {

#if defined(RWKV_NEON_I8MM)

template <int TYPE, int T>
inline void multiply(const uint8_t *w, const int8_t *q, const int32_t *, I8 out[T]) {
    constexpr int kPairs = (T + 1) / 2;
    // Of rows 2 r and 2 r + 1 with tokens 2 t and 2 t + 1: both with the first row, then both with the second.
    int32x4_t sums[kPairs][4];
    for (int t = 0; t < kPairs; ++t)
        for (int r = 0; r < 4; ++r) sums[t][r] = vdupq_n_s32(0);
    for (int j = 0; j < 4; ++j) {
        int8x16_t rows[4];
        for (int r = 0; r < 4; ++r) rows[r] = vreinterpretq_s8_u8(vld1q_u8(w + 64 * j + 16 * r));
        for (int t = 0; t < kPairs; ++t) {
            const int8x16_t in = vld1q_s8(q + 8 * static_cast<int>(kTile) * j + 16 * t);
            for (int r = 0; r < 4; ++r) sums[t][r] = vmmlaq_s32(sums[t][r], rows[r], in);
        }
    }
    for (int t = 0; t < T; ++t) {
        const int32x4_t *own = sums[t / 2];
        const int32x4_t lanes[2] = {t % 2 == 0 ? vuzp1q_s32(own[0], own[1]) : vuzp2q_s32(own[0], own[1]),
                                    t % 2 == 0 ? vuzp1q_s32(own[2], own[3]) : vuzp2q_s32(own[2], own[3])};
        memcpy(&out[t], lanes, sizeof lanes);
    }
}

#else

template <int TOKEN>
inline int32x4_t add_products(int32x4_t sum, int8x16_t rows, int8x16_t tokens) {
    return vdotq_laneq_s32(sum, rows, tokens, TOKEN);
}

template <int TYPE, int T>
inline void multiply(const uint8_t *w, const int8_t *q, const int32_t *, I8 out[T]) {
    int32x4_t sums[4][2];
    for (int t = 0; t < T; ++t) sums[t][0] = sums[t][1] = vdupq_n_s32(0);
    for (int j = 0; j < 8; ++j) {
        const int8x16_t in = vld1q_s8(q + 4 * static_cast<int>(kTile) * j);
        for (int half = 0; half < 2; ++half) {
            const int8x16_t rows = vreinterpretq_s8_u8(vld1q_u8(w + 32 * j + 16 * half));
            sums[0][half] = add_products<0>(sums[0][half], rows, in);
            if constexpr (T > 1) sums[1][half] = add_products<1>(sums[1][half], rows, in);
            if constexpr (T > 2) sums[2][half] = add_products<2>(sums[2][half], rows, in);
            if constexpr (T > 2) sums[3][half] = add_products<3>(sums[3][half], rows, in);
        }
    }
    memcpy(out, sums, T * sizeof(I8));
}

#endif

// The two halves of a block's weights.
template <int TYPE>
inline int8x16x2_t load_block(const uint8_t *at) {
    using B = Block<TYPE>;
    int8x16x2_t out;
    if constexpr (TYPE == kQ8_0) {
        out.val[0] = vreinterpretq_s8_u8(vld1q_u8(at + 2));
        out.val[1] = vreinterpretq_s8_u8(vld1q_u8(at + 18));
    } else {
        const uint8x16_t both = vld1q_u8(at + B::quants);
        uint8x16_t a = vandq_u8(both, vdupq_n_u8(15)), b = vshrq_n_u8(both, 4);
        if constexpr (B::five) {
            const uint8x8_t own = vcreate_u8(0x8040201008040201u);
            const uint8x16_t masks = vcombine_u8(own, own), bit = vdupq_n_u8(16);
            const uint8_t *bits = at + B::high;
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

// The two halves of the weights of sub-block `sub` of a super-block.
template <int TYPE>
inline int8x16x2_t load_sub(const uint8_t *at, size_t sub) {
    using B = Block<TYPE>;
    int8x16x2_t out;
    for (size_t half = 0; half < 2; ++half) {
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
inline int8x16x2_t load_any(const uint8_t *at, size_t block) {
    if constexpr (Block<TYPE>::super) return load_sub<TYPE>(at, block);
    else return load_block<TYPE>(at + block * Block<TYPE>::bytes);
}

template <int TYPE>
inline void pack(const Panel &panel, const uint8_t *w, size_t row_bytes, uint32_t rows) {
    constexpr size_t together = Block<TYPE>::super ? 8 : 1;  // blocks
    for (uint32_t row = 0; row < kLanes; ++row) {
        const uint8_t *at = w + (row < rows ? row : rows - 1) * row_bytes;
        for (size_t block = 0; block < panel.blocks; block += together, at += Block<TYPE>::bytes) {
            prefetch(at);
            float scale[8], least[8] = {};
            if constexpr (Block<TYPE>::super) super_scales(at, scale, least);
            else scale[0] = half_scale(at);
            if constexpr (!Block<TYPE>::super && Block<TYPE>::min) least[0] = half_scale(at + 2);
            for (size_t i = 0; i < together; ++i) {
                const int8x16x2_t own = load_any<TYPE>(at, i);
                uint8_t *to = panel.q + (block + i) * 32 * kLanes;
                for (size_t j = 0; j < 8; ++j) memcpy(to + 4 * word_of(j, row, kLanes), reinterpret_cast<const char *>(&own) + 4 * j, 4);
                panel.scale[(block + i) * kLanes + row] = scale[i];
                panel.least[(block + i) * kLanes + row] = least[i];
            }
        }
    }
}

// A single token's inputs stand as they come.
inline void place_row(const Activations &x, uint32_t token, size_t block, const int8_t bytes[32], float d, int32_t, float s) {
    const size_t first = size_t{token} * x.stride;
    memcpy(x.q + first + block * 32, bytes, 32);
    x.d[first / 32 + block] = d;
    x.s[first / 32 + block] = s;
}

template <int TYPE>
inline int32x4_t block_sums(const uint8_t *w, size_t block, const int8_t *q) {
    const int8x16x2_t own = load_any<TYPE>(w, block);
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), own.val[0], vld1q_s8(q)), own.val[1], vld1q_s8(q + 16));
}

// Eight blocks, or fewer at the end of a row; running sums 0 .. 3 and 4 .. 7.
template <int TYPE>
inline void add_group(float32x4_t sums[2], const uint8_t *w, const int8_t *q, const float *d, const float *s, size_t blocks) {
    using B = Block<TYPE>;
    float scale[8] = {}, least[8] = {};
    if constexpr (B::super) {
        super_scales(w, scale, least);
    } else {
        for (size_t i = 0; i < blocks; ++i) {
            scale[i] = half_scale(w + i * B::bytes);
            if constexpr (B::min) least[i] = half_scale(w + i * B::bytes + 2);
        }
    }
    for (size_t half = 0; half < 2 && half * 4 < blocks; ++half) {
        int32x4_t parts[4];
        float in[4] = {}, added[4] = {};
        for (size_t i = 0; i < 4; ++i) {
            const size_t block = half * 4 + i;
            parts[i] = vdupq_n_s32(0);
            if (block >= blocks) continue;
            parts[i] = block_sums<TYPE>(w, block, q + 32 * block);
            in[i] = d[block];
            if constexpr (B::min) added[i] = s[block];
        }
        const int32x4_t whole = vpaddq_s32(vpaddq_s32(parts[0], parts[1]), vpaddq_s32(parts[2], parts[3]));
        const float32x4_t by = vmulq_f32(vld1q_f32(scale + 4 * half), vld1q_f32(in));
        sums[half] = vfmaq_f32(sums[half], vcvtq_f32_s32(whole), by);
        if constexpr (B::min) sums[half] = vfmaq_f32(sums[half], vld1q_f32(least + 4 * half), vld1q_f32(added));
    }
}

template <int TYPE>
inline float row_product(const uint8_t *w, uint32_t cols, const Activations &x) {
    constexpr size_t bytes = (Block<TYPE>::super ? size_t{1} : size_t{8}) * Block<TYPE>::bytes;
    float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
    const size_t blocks = cols / 32;
    size_t b = 0;
    for (; b + 8 <= blocks; b += 8, w += bytes) {
        for (size_t i = 0; i < bytes; i += 64) prefetch(w + i);
        add_group<TYPE>(sums, w, x.q + 32 * b, x.d + b, x.s + b, 8);
    }
    if (b < blocks) add_group<TYPE>(sums, w, x.q + 32 * b, x.d + b, x.s + b, blocks - b);
    const float32x4_t pairs = vpaddq_f32(sums[0], sums[1]);  // 0 + 1, 2 + 3, 4 + 5, 6 + 7
    const float32x2_t fours = vadd_f32(vget_low_f32(pairs), vget_high_f32(pairs));
    return vget_lane_f32(fours, 0) + vget_lane_f32(fours, 1);
}

void quantize(const Activations *x, uint32_t t, uint32_t tokens, uint32_t c0, uint32_t c1) {
    for (uint32_t c = c0; c < c1; c += 32) {
        int8_t bytes[32];
        float d;
        int32_t sum;
        quantize_block(x->f + static_cast<size_t>(t) * x->stride + c, bytes, &d, &sum);
        place(*x, t, tokens, c / 32, bytes, d, sum);
    }
}

}  // namespace
}  // namespace rwkvflow

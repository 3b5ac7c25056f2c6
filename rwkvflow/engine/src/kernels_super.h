// Super-blocks of Q4_K and Q5_K for kernels_blocks.h: eight sub-blocks of 32, each like a block with a minimum.
#pragma once

namespace rwkvflow {
namespace {

#if !defined(RWKV_HAS_BLOCKS)
// Lane i: the sum over 4i .. 4i + 3 of w * q, exact.
inline I8 byte_sums(const int8_t *w, const int8_t *q) {
    I8 out;
    for (int i = 0; i < 8; ++i) {
        int32_t sum = 0;
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += w[j] * q[j];
        out[i] = sum;
    }
    return out;
}
// The weights of sub-block `sub` as bytes.
template <int TYPE>
inline void unpack_sub(const uint8_t *at, int sub, int8_t out[32]) {
    using B = Block<TYPE>;
    const uint8_t *both = at + B::quants + sub / 2 * 32;
    for (int i = 0; i < 32; ++i) {
        int q = both[i] >> (sub % 2 * 4) & 15;
        if constexpr (B::five) q |= (at[B::high + i] >> sub & 1) << 4;
        out[i] = static_cast<int8_t>(q);
    }
}
// byte_sums of them.
template <int TYPE>
inline I8 sub_sums(const uint8_t *at, int sub, const int8_t *q) {
    int8_t w[32];
    unpack_sub<TYPE>(at, sub, w);
    return byte_sums(w, q);
}
#endif

inline V8 splat8(float v) { return V8{v, v, v, v, v, v, v, v}; }
inline V8 to_float(I8 value) { return __builtin_convertvector(value, V8); }

// Scales of the eight sub-blocks and their minima, negated: those are added. Four of their 6-bit numbers at a time; blocks.h
// says how they are packed.
inline void super_scales(const uint8_t *at, float scale[8], float least[8]) {
    const uint32_t six = 0x3f3f3f3fu, four = 0x0f0f0f0fu, upper = 0x30303030u;
    uint32_t in[3];
    memcpy(in, at + 4, sizeof in);
    const uint32_t words[4] = {in[0] & six, (in[2] & four) | (in[0] >> 2 & upper), in[1] & six,
                               (in[2] >> 4 & four) | (in[1] >> 2 & upper)};
    uint8_t numbers[16];
    memcpy(numbers, words, sizeof numbers);
    const float d = half_scale(at), dmin = half_scale(at + 2);
    for (int i = 0; i < 8; ++i) {
        scale[i] = d * static_cast<float>(numbers[i]);
        least[i] = -(dmin * static_cast<float>(numbers[8 + i]));
    }
}

// A row against one token; blocks of 32.
template <int TYPE>
inline float row_super(const uint8_t *w, const int8_t *q, const float *d, const float *s, uint32_t blocks) {
    V8 sum = {};
    float minima = 0;
    for (uint32_t b = 0; b < blocks; b += 8, w += Block<TYPE>::bytes) {
        prefetch(w);
        prefetch(w + 64);
        prefetch(w + 128);
        float scale[8], least[8];
        super_scales(w, scale, least);
        for (uint32_t j = 0; j < 8; ++j) {
            const I8 whole = sub_sums<TYPE>(w, static_cast<int>(j), q + (b + j) * size_t{32});
            sum = fused(to_float(whole), splat8(scale[j] * d[b + j]), sum);
            minima += least[j] * s[b + j];
        }
    }
    return sum_lanes8(sum) + minima;
}

// Rows unpacked to bytes, and scales and minima to floats, for all tokens: [rows][cols], [rows][blocks] and [rows][blocks].
struct Panel {
    int8_t *q;
    float *scale, *least;
    size_t cols, blocks;
};

template <int TYPE>
inline void unpack_super(const Panel &panel, const uint8_t *w, size_t row_bytes, uint32_t rows) {
    for (uint32_t r = 0; r < rows; ++r) {
        const uint8_t *at = w + r * row_bytes;
        for (size_t b = r * panel.blocks; b < (r + 1) * panel.blocks; b += 8, at += Block<TYPE>::bytes) {
            prefetch(at);
            prefetch(at + 64);
            prefetch(at + 128);
            super_scales(at, panel.scale + b, panel.least + b);
            for (size_t j = 0; j < 8; ++j) unpack_sub<TYPE>(at, static_cast<int>(j), panel.q + (b + j) * 32);
        }
    }
}

}  // namespace
}  // namespace rwkvflow

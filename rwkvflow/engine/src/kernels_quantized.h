// What all kernels of quantized matrices share: the types, and 8-bit inputs, in the compilers' portable notation.
#pragma once

namespace rwkvflow {
namespace {

template <int TYPE>
void matmul_type(const Product &p);

void matmul_quantized(const Product &p) {
    switch (p.w->type) {
        case kQ4_0: return matmul_type<kQ4_0>(p);
        case kQ4_1: return matmul_type<kQ4_1>(p);
        case kQ5_0: return matmul_type<kQ5_0>(p);
        case kQ5_1: return matmul_type<kQ5_1>(p);
        case kQ8_0: return matmul_type<kQ8_0>(p);
        case kQ4_K: return matmul_type<kQ4_K>(p);
        case kQ5_K: return matmul_type<kQ5_K>(p);
        default: return;
    }
}

#if !defined(RWKV_HAS_QUANTIZE)
// 32 floats in 8 bits: their scale, and the sum of the bytes.
inline void quantize_block(const float *from, int8_t out[32], float *scale, int32_t *sum) {
    const V16 low = load16(from), high = load16(from + 16);
    const V16 sizes = maximum(absolute(low), absolute(high));
    float largest = 0;
    for (int i = 0; i < 16; ++i) largest = sizes[i] > largest ? sizes[i] : largest;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    // Adding 1.5 * 2^23 rounds to an integer, ties to even, which then stands in the low bits.
    const V16 round = splat(12582912.0f);
    const U16 a = as_bits(low * inverse + round), b = as_bits(high * inverse + round);
    *sum = 0;
    for (int i = 0; i < 16; ++i) {
        out[i] = static_cast<int8_t>(a[i] & 255u);
        out[16 + i] = static_cast<int8_t>(b[i] & 255u);
        *sum += out[i] + out[16 + i];
    }
    *scale = largest / 127.0f;
}

// Scales of the eight sub-blocks of a super-block and their minima, negated: those are added. Four of their 6-bit numbers at a
// time; blocks.h says how they are packed.
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
#endif

}  // namespace
}  // namespace rwkvflow

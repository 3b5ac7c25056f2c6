// Types of weights: their byte layouts, and scalar conversions between the float types.
//
// Layouts are those of rwkv.cpp's model files (ggml): little-endian, 32 weights a block, scales in IEEE half precision,
// weight j < 16 in the low nibble of byte j and weight j + 16 in its high nibble, bit j of `qh` the fifth bit of weight
// j. The K types have 256 weights a block, and the IQ types are those of llama.cpp's files: see below. Blocks stand in
// files at any address, so every struct here has an alignment of 1.
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/types.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layouts below are written for little-endian processors"
#endif

namespace rwkvflow {

constexpr uint32_t kBlockLength = 32;        // weights in a block of any quantized type; of the K types, in a sub-block
constexpr uint32_t kSuperBlockLength = 256;  // weights in a super-block of the K types

#pragma pack(push, 1)

// w = d * (q - 8)
struct BlockQ4_0 {
    uint16_t d;
    uint8_t qs[kBlockLength / 2];
};

// w = d * q + m
struct BlockQ4_1 {
    uint16_t d;
    uint16_t m;
    uint8_t qs[kBlockLength / 2];
};

// w = d * (q - 16)
struct BlockQ5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[kBlockLength / 2];
};

// w = d * q + m
struct BlockQ5_1 {
    uint16_t d;
    uint16_t m;
    uint8_t qh[4];
    uint8_t qs[kBlockLength / 2];
};

// w = d * q
struct BlockQ8_0 {
    uint16_t d;
    int8_t qs[kBlockLength];
};

// Sub-block s, weights 32 s .. 32 s + 31: w = d * scale(s) * q - dmin * minimum(s). Of the 6-bit scales and minima the
// first four are the low bits of bytes 0 .. 3 and 4 .. 7; of the others byte 4 + s has the low four bits (of the
// minimum in its high nibble), and the high bits of bytes s - 4 and s their upper two. Weight j of sub-blocks 2 p and 2
// p + 1 is in the low and the high nibble of byte 32 p + j.
struct BlockQ4_K {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qs[kSuperBlockLength / 2];
};

// The same; bit s of byte j of `qh` is the fifth bit of weight j of sub-block s.
struct BlockQ5_K {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[kSuperBlockLength / 8];
    uint8_t qs[kSuperBlockLength / 2];
};

// Sub-block s, weights 16 s .. 16 s + 15: w = d * (scales[s] & 15) * q - dmin * (scales[s] >> 4). Of each half of 128
// weights, byte j of its 32 has weights j, j + 32, j + 64 and j + 96, two bits each from the lowest.
struct BlockQ2_K {
    uint8_t scales[kSuperBlockLength / 16];
    uint8_t qs[kSuperBlockLength / 4];
    uint16_t d;
    uint16_t dmin;
};

// Sub-block s of 16: w = d * (scale(s) - 32) * (q - 4). The low two bits of q as in Q2_K; bit k of byte j of `hmask` is
// the third bit of weight 32 k + j. Of the 6-bit scales the low four bits of s < 8 are in the low nibble of byte s, of
// the others in the high nibble of byte s - 8; the upper two of s at bit 2 (s / 4) of byte 8 + s % 4.
struct BlockQ3_K {
    uint8_t hmask[kSuperBlockLength / 8];
    uint8_t qs[kSuperBlockLength / 4];
    uint8_t scales[12];
    uint16_t d;
};

// Sub-block s of 16: w = d * scales[s] * (q - 32). Of each half of 128 weights, the low nibbles of bytes 0 .. 63 of
// `ql` are the low four bits of weights 0 .. 63, the high nibbles those of 64 .. 127; byte j of its 32 of `qh` has the
// upper two bits of weights j, j + 32, j + 64 and j + 96 from the lowest.
struct BlockQ6_K {
    uint8_t ql[kSuperBlockLength / 2];
    uint8_t qh[kSuperBlockLength / 4];
    int8_t scales[kSuperBlockLength / 16];
    uint16_t d;
};

// w = d * kCurve[q]; nibbles as in Q4_0.
struct BlockIQ4_NL {
    uint16_t d;
    uint8_t qs[kBlockLength / 2];
};

// Sub-block s of 32: w = d * (scale(s) - 32) * kCurve[q], nibbles of each sub-block as in Q4_0. The low four bits of
// scale(s) are in nibble s of `scales_l`, the upper two at bit 2 s of `scales_h`.
struct BlockIQ4_XS {
    uint16_t d;
    uint16_t scales_h;
    uint8_t scales_l[kSuperBlockLength / 64];
    uint8_t qs[kSuperBlockLength / 2];
};

// Sub-block s of 32: w = d * (0.5 + scale) / 2 * sign * point, points of four weights from a grid of 256 (one index a
// byte of the first 64). The little-endian 32 bits of s behind them: four times 7 signs, whose eighth makes their
// number even, and the scale in the upper four.
struct BlockIQ3_XXS {
    uint16_t d;
    uint8_t qs[3 * kSuperBlockLength / 8];
};

// Sub-block s of 32: w = d * (1 + 2 scale) * sign * point, points of four weights from a grid of 512, whose index has
// its ninth bit in `qh`; the scale is nibble s of `scales`.
struct BlockIQ3_S {
    uint16_t d;
    uint8_t qs[kSuperBlockLength / 4];
    uint8_t qh[kSuperBlockLength / 32];
    uint8_t signs[kSuperBlockLength / 8];
    uint8_t scales[kSuperBlockLength / 64];
};

#pragma pack(pop)

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockIQ4_XS) == 136 && sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110);

// What the 4-bit codes of IQ4_NL and IQ4_XS stand for.
constexpr int8_t kCurve[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline bool has_super_blocks(int32_t type) {
    return type == kQ2_K || type == kQ3_K || type == kQ4_K || type == kQ5_K || type == kQ6_K || type == kIQ4_XS ||
           type == kIQ3_XXS || type == kIQ3_S;
}

inline bool is_quantized(int32_t type) {
    return type == kQ4_0 || type == kQ4_1 || type == kQ5_0 || type == kQ5_1 || type == kQ8_0 || type == kIQ4_NL ||
           has_super_blocks(type);
}

// Weights in one unit of a type: 32 or 256 for the quantized, 1 for the others, 0 for an unknown type.
inline uint32_t block_length(int32_t type) {
    if (has_super_blocks(type)) return kSuperBlockLength;
    if (is_quantized(type)) return kBlockLength;
    return type == kF32 || type == kF16 || type == kBF16 ? 1 : 0;
}

// Bytes of that unit, 0 for an unknown type.
inline uint32_t block_bytes(int32_t type) {
    switch (type) {
        case kF32: return 4;
        case kF16: return 2;
        case kBF16: return 2;
        case kQ4_0: return sizeof(BlockQ4_0);
        case kQ4_1: return sizeof(BlockQ4_1);
        case kQ5_0: return sizeof(BlockQ5_0);
        case kQ5_1: return sizeof(BlockQ5_1);
        case kQ8_0: return sizeof(BlockQ8_0);
        case kQ4_K: return sizeof(BlockQ4_K);
        case kQ5_K: return sizeof(BlockQ5_K);
        case kQ2_K: return sizeof(BlockQ2_K);
        case kQ3_K: return sizeof(BlockQ3_K);
        case kQ6_K: return sizeof(BlockQ6_K);
        case kIQ4_NL: return sizeof(BlockIQ4_NL);
        case kIQ4_XS: return sizeof(BlockIQ4_XS);
        case kIQ3_XXS: return sizeof(BlockIQ3_XXS);
        case kIQ3_S: return sizeof(BlockIQ3_S);
        default: return 0;
    }
}

// What llama.cpp's quantizer takes where rows of `cols` weights are no whole blocks of a type of 256: one of 32 weights
// a block with as many bits, or the next larger; where 32 does not divide them either, F16. Any other type is its own.
inline int32_t type_for_rows(int32_t type, uint64_t cols) {
    if (is_quantized(type) && cols % kBlockLength != 0) return kF16;
    if (!has_super_blocks(type) || cols % kSuperBlockLength == 0) return type;
    switch (type) {
        case kQ2_K:
        case kQ3_K: return kQ4_0;
        case kQ4_K: return kQ5_0;
        case kQ5_K: return kQ5_1;
        case kQ6_K: return kQ8_0;
        default: return kIQ4_NL;
    }
}

inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// a where the mask is all ones, b where it is zero.
inline uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) { return (a & mask) | (b & ~mask); }

// Half to single precision, exact. Free of branches, so that loops over it become vector code.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    // Normal numbers, infinities and NaN: the same bits 13 places up and another bias, or the highest exponent.
    const uint32_t special = 0u - static_cast<uint32_t>(rest >= 0x7c00u);
    const uint32_t normal = (rest << 13) + select_bits(special, 0x70000000u, 0x38000000u);
    // Subnormal numbers are multiples of 2^-24: put the multiple below the leading 1 of 0.5, then take 0.5 away.
    const uint32_t small = float_bits(bits_float(0x3f000000u | rest) - 0.5f);
    const uint32_t tiny = 0u - static_cast<uint32_t>(rest < 0x400u);
    return bits_float(sign | select_bits(tiny, small, normal));
}

// Single to half precision, to nearest, ties to even; too large becomes infinity, any NaN the quiet one with its sign.
inline uint16_t float_to_half(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t rest = bits & 0x7fffffffu;
    const uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
    // Below 2^-14 the unit is 2^-24, which is the unit of [0.5, 1): the addition rounds as is wanted.
    const uint32_t small_range = 0u - static_cast<uint32_t>(rest < 0x38800000u);
    const uint32_t small = float_bits(bits_float(rest & small_range) + 0.5f) - 0x3f000000u;
    uint32_t half = select_bits(small_range, small, normal);
    half = select_bits(0u - static_cast<uint32_t>(rest >= 0x477ff000u), 0x7c00u, half);
    half = select_bits(0u - static_cast<uint32_t>(rest > 0x7f800000u), 0x7e00u, half);
    return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

inline bool half_is_finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

inline float bfloat_to_float(uint16_t bfloat) { return bits_float(static_cast<uint32_t>(bfloat) << 16); }

// Single precision to bfloat16, to nearest, ties to even; a NaN becomes quiet and keeps its upper bits.
inline uint16_t float_to_bfloat(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t nan = 0u - static_cast<uint32_t>((bits & 0x7fffffffu) > 0x7f800000u);
    return static_cast<uint16_t>(select_bits(nan, bits | 0x00400000u, bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace rwkvflow

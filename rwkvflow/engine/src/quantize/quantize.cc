// Block quantizers. Each is written once, free of branches on data, and compiled for the baseline and for AVX2.
//
// Reductions are done on the integers that floats order like, because a compiler may reorder those: that keeps vector
// code and scalar code equal bit for bit. It also makes NaN the largest number, so that a bad block shows in its scale.
#include "quantize/dispatch.h"
#include "quantize/weighted.h"

namespace rwkvflow {
namespace {

// t, or 0 where its integer does not fit in 32 bits or t is NaN. That happens in blocks so small that the reciprocal of
// their scale is infinite. C++ leaves the conversion undefined; x86 makes 0x80000000 of it, whose low byte is 0 as
// well.
INLINE float convertible(float t) {
    const uint32_t bits = float_bits(t);
    const uint32_t fits = 0u - static_cast<uint32_t>((bits & kMagnitude) < 0x4f000000u);
    return bits_float(bits & fits);
}

INLINE int32_t truncated(float t) {
    return static_cast<int32_t>(static_cast<int8_t>(static_cast<int32_t>(convertible(t))));
}

INLINE int32_t at_most(int32_t limit, int32_t value) { return value < limit ? value : limit; }

INLINE uint32_t largest_abs(const float *x) {
    int32_t largest = 0;
    for (uint32_t j = 0; j < kBlockLength; ++j) {
        const int32_t bits = static_cast<int32_t>(float_bits(x[j]) & kMagnitude);
        largest = bits > largest ? bits : largest;
    }
    return static_cast<uint32_t>(largest);
}

// Sign bit of the first value whose other bits are `magnitude`. There has to be one.
INLINE uint32_t sign_of_first(const float *x, uint32_t magnitude) {
    int32_t first = 2 * static_cast<int32_t>(kBlockLength);
    for (uint32_t j = 0; j < kBlockLength; ++j) {
        const uint32_t bits = float_bits(x[j]);
        const int32_t here = static_cast<int32_t>(2 * j + (bits >> 31));
        const int32_t candidate = (bits & kMagnitude) == magnitude ? here : 2 * static_cast<int32_t>(kBlockLength);
        first = candidate < first ? candidate : first;
    }
    return static_cast<uint32_t>(first) << 31;
}

// The value furthest from zero, the first of those where both signs tie; ggml's quantizers hang on that choice.
INLINE float extreme(const float *x) {
    const uint32_t magnitude = largest_abs(x);
    return bits_float(magnitude | sign_of_first(x, magnitude));
}

// Floats as integers of the same order (-0 before +0, NaN outermost); its own inverse.
INLINE int32_t ordered(uint32_t bits) {
    return static_cast<int32_t>(bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) & kMagnitude));
}

INLINE void range(const float *x, float *min, float *max) {
    int32_t low = INT32_MAX;
    int32_t high = INT32_MIN;
    for (uint32_t j = 0; j < kBlockLength; ++j) {
        const int32_t value = ordered(float_bits(x[j]));
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    uint32_t bits = static_cast<uint32_t>(ordered(static_cast<uint32_t>(low)));
    // A comparison of floats would not tell -0 from +0 and keep the first: the sign of `m` depends on it.
    if ((bits & kMagnitude) == 0) bits = sign_of_first(x, 0);
    *min = bits_float(bits);
    *max = bits_float(static_cast<uint32_t>(ordered(static_cast<uint32_t>(high))));
}

INLINE float reciprocal(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

INLINE void pack_nibbles(const int32_t *q, uint8_t *qs) {
    for (uint32_t j = 0; j < kBlockLength / 2; ++j) {
        qs[j] = static_cast<uint8_t>((q[j] & 0xf) | ((q[j + kBlockLength / 2] & 0xf) << 4));
    }
}

INLINE void pack_fifth_bits(const int32_t *q, uint8_t *qh) {
    uint32_t high = 0;
    for (uint32_t j = 0; j < kBlockLength; ++j) high |= ((static_cast<uint32_t>(q[j]) >> 4) & 1u) << j;
    memcpy(qh, &high, sizeof high);
}

struct CodecQ4_0 {
    using Block = BlockQ4_0;
    static INLINE bool write(const float *x, Block *y) {
        const float d = extreme(x) / -8.0f;
        const float id = reciprocal(d);
        int32_t q[kBlockLength];
        for (uint32_t j = 0; j < kBlockLength; ++j) q[j] = at_most(15, truncated(x[j] * id + 8.5f));
        y->d = float_to_half(d);
        pack_nibbles(q, y->qs);
        return half_is_finite(y->d);
    }
};

struct CodecQ4_1 {
    using Block = BlockQ4_1;
    static INLINE bool write(const float *x, Block *y) {
        float min, max;
        range(x, &min, &max);
        const float d = (max - min) / 15.0f;
        const float id = reciprocal(d);
        int32_t q[kBlockLength];
        for (uint32_t j = 0; j < kBlockLength; ++j) q[j] = at_most(15, truncated((x[j] - min) * id + 0.5f));
        y->d = float_to_half(d);
        y->m = float_to_half(min);
        pack_nibbles(q, y->qs);
        return half_is_finite(y->d) && half_is_finite(y->m);
    }
};

struct CodecQ5_0 {
    using Block = BlockQ5_0;
    static INLINE bool write(const float *x, Block *y) {
        const float d = extreme(x) / -16.0f;
        const float id = reciprocal(d);
        int32_t q[kBlockLength];
        for (uint32_t j = 0; j < kBlockLength; ++j) q[j] = at_most(31, truncated(x[j] * id + 16.5f));
        y->d = float_to_half(d);
        pack_fifth_bits(q, y->qh);
        pack_nibbles(q, y->qs);
        return half_is_finite(y->d);
    }
};

struct CodecQ5_1 {
    using Block = BlockQ5_1;
    static INLINE bool write(const float *x, Block *y) {
        float min, max;
        range(x, &min, &max);
        const float d = (max - min) / 31.0f;
        const float id = reciprocal(d);
        int32_t q[kBlockLength];
        for (uint32_t j = 0; j < kBlockLength; ++j) q[j] = truncated((x[j] - min) * id + 0.5f);
        y->d = float_to_half(d);
        y->m = float_to_half(min);
        pack_fifth_bits(q, y->qh);
        pack_nibbles(q, y->qs);
        return half_is_finite(y->d) && half_is_finite(y->m);
    }
};

struct CodecQ8_0 {
    using Block = BlockQ8_0;
    static INLINE bool write(const float *x, Block *y) {
        const float d = bits_float(largest_abs(x)) / 127.0f;
        const float id = reciprocal(d);
        for (uint32_t j = 0; j < kBlockLength; ++j) {
            // To nearest, halves away from zero; the difference is exact.
            const float t = convertible(x[j] * id);
            const int32_t whole = static_cast<int32_t>(t);
            const float rest = t - static_cast<float>(whole);
            y->qs[j] =
                static_cast<int8_t>(whole + static_cast<int32_t>(rest >= 0.5f) - static_cast<int32_t>(rest <= -0.5f));
        }
        y->d = float_to_half(d);
        return half_is_finite(y->d);
    }
};

template <class Codec>
INLINE bool write_blocks(const float *src, void *dst, uint64_t count) {
    typename Codec::Block *blocks = static_cast<typename Codec::Block *>(dst);
    bool finite = true;
    for (uint64_t i = 0; i < count / kBlockLength; ++i) finite &= Codec::write(src + i * kBlockLength, blocks + i);
    return finite;
}

INLINE bool write_halves(const float *src, void *dst, uint64_t count) {
    uint8_t *out = static_cast<uint8_t *>(dst);
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; ++i) {
        const uint16_t half = float_to_half(src[i]);
        bad |= static_cast<uint32_t>((half & 0x7c00u) == 0x7c00u);
        memcpy(out + 2 * i, &half, sizeof half);
    }
    return bad == 0;
}

INLINE bool write_bfloats(const float *src, void *dst, uint64_t count) {
    uint8_t *out = static_cast<uint8_t *>(dst);
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; ++i) {
        const uint16_t bfloat = float_to_bfloat(src[i]);
        bad |= static_cast<uint32_t>((bfloat & 0x7f80u) == 0x7f80u);
        memcpy(out + 2 * i, &bfloat, sizeof bfloat);
    }
    return bad == 0;
}

INLINE bool write_floats(const float *src, void *dst, uint64_t count) {
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; ++i) bad |= static_cast<uint32_t>((float_bits(src[i]) & kMagnitude) >= 0x7f800000u);
    memcpy(dst, src, count * sizeof(float));
    return bad == 0;
}

INLINE void read_bfloats(const void *src, float *dst, uint64_t count) {
    const uint8_t *in = static_cast<const uint8_t *>(src);
    for (uint64_t i = 0; i < count; ++i) {
        uint16_t bfloat;
        memcpy(&bfloat, in + 2 * i, sizeof bfloat);
        dst[i] = bfloat_to_float(bfloat);
    }
}

INLINE void read_halves(const void *src, float *dst, uint64_t count) {
    const uint8_t *in = static_cast<const uint8_t *>(src);
    for (uint64_t i = 0; i < count; ++i) {
        uint16_t half;
        memcpy(&half, in + 2 * i, sizeof half);
        dst[i] = half_to_float(half);
    }
}

}  // namespace
}  // namespace rwkvflow

// RWKVFLOW_AVX2 leaves the AVX-512 versions out, for the tests again.
#if defined(HAVE_AVX2) && !defined(RWKVFLOW_AVX2)
#define HAVE_AVX512 1
#include "quantize/avx512.inc"
#endif

namespace rwkvflow {

DEFINE_WRITER(quantize_row_f32, write_floats(src, dst, count))
DEFINE_WRITER(quantize_row_bf16, write_bfloats(src, dst, count))

// Also written by hand for AVX-512.
#ifdef HAVE_AVX512
#define DEFINE_WIDE_WRITER(name, wide, body)                                                       \
    static AVX512 bool name##_avx512(const float *src, void *dst, uint64_t count) { return wide; } \
    static AVX2 bool name##_avx2(const float *src, void *dst, uint64_t count) { return body; }     \
    bool name(const float *src, void *dst, uint64_t count) {                                       \
        if (have_avx512()) return name##_avx512(src, dst, count);                                  \
        if (have_avx2()) return name##_avx2(src, dst, count);                                      \
        return body;                                                                               \
    }
#define DEFINE_WIDE_READER(name, wide, body)                                                       \
    static AVX512 void name##_avx512(const void *src, float *dst, uint64_t count) { return wide; } \
    static AVX2 void name##_avx2(const void *src, float *dst, uint64_t count) { return body; }     \
    void name(const void *src, float *dst, uint64_t count) {                                       \
        if (have_avx512()) return name##_avx512(src, dst, count);                                  \
        if (have_avx2()) return name##_avx2(src, dst, count);                                      \
        return body;                                                                               \
    }
#else
#define DEFINE_WIDE_WRITER(name, wide, body) DEFINE_WRITER(name, body)
#define DEFINE_WIDE_READER(name, wide, body) \
    void name(const void *src, float *dst, uint64_t count) { return body; }
#endif

DEFINE_WIDE_WRITER(quantize_row_f16, write_halves512(src, dst, count), write_halves(src, dst, count))
DEFINE_WIDE_WRITER(quantize_row_q4_0, write_blocks512<BlockQ4_0>(src, dst, count),
                   write_blocks<CodecQ4_0>(src, dst, count))
DEFINE_WIDE_WRITER(quantize_row_q4_1, write_blocks512<BlockQ4_1>(src, dst, count),
                   write_blocks<CodecQ4_1>(src, dst, count))
DEFINE_WIDE_WRITER(quantize_row_q5_0, write_blocks512<BlockQ5_0>(src, dst, count),
                   write_blocks<CodecQ5_0>(src, dst, count))
DEFINE_WIDE_WRITER(quantize_row_q5_1, write_blocks512<BlockQ5_1>(src, dst, count),
                   write_blocks<CodecQ5_1>(src, dst, count))
DEFINE_WIDE_WRITER(quantize_row_q8_0, write_blocks512<BlockQ8_0>(src, dst, count),
                   write_blocks<CodecQ8_0>(src, dst, count))
DEFINE_WIDE_READER(dequantize_row_f16, read_halves512(src, dst, count), read_halves(src, dst, count))
DEFINE_WIDE_READER(dequantize_row_bf16, read_bfloats512(src, dst, count), read_bfloats(src, dst, count))

void dequantize_row_q4_0(const void *src, float *dst, uint64_t count) {
    const BlockQ4_0 *blocks = static_cast<const BlockQ4_0 *>(src);
    for (uint64_t i = 0; i < count / kBlockLength; ++i, dst += kBlockLength) {
        const float d = half_to_float(blocks[i].d);
        for (uint32_t j = 0; j < kBlockLength / 2; ++j) {
            dst[j] = static_cast<float>((blocks[i].qs[j] & 0xf) - 8) * d;
            dst[j + kBlockLength / 2] = static_cast<float>((blocks[i].qs[j] >> 4) - 8) * d;
        }
    }
}

void dequantize_row_q4_1(const void *src, float *dst, uint64_t count) {
    const BlockQ4_1 *blocks = static_cast<const BlockQ4_1 *>(src);
    for (uint64_t i = 0; i < count / kBlockLength; ++i, dst += kBlockLength) {
        const float d = half_to_float(blocks[i].d);
        const float m = half_to_float(blocks[i].m);
        for (uint32_t j = 0; j < kBlockLength / 2; ++j) {
            dst[j] = static_cast<float>(blocks[i].qs[j] & 0xf) * d + m;
            dst[j + kBlockLength / 2] = static_cast<float>(blocks[i].qs[j] >> 4) * d + m;
        }
    }
}

void dequantize_row_q5_0(const void *src, float *dst, uint64_t count) {
    const BlockQ5_0 *blocks = static_cast<const BlockQ5_0 *>(src);
    for (uint64_t i = 0; i < count / kBlockLength; ++i, dst += kBlockLength) {
        const float d = half_to_float(blocks[i].d);
        uint32_t high;
        memcpy(&high, blocks[i].qh, sizeof high);
        for (uint32_t j = 0; j < kBlockLength / 2; ++j) {
            const uint32_t a = (blocks[i].qs[j] & 0xfu) | ((high >> j & 1u) << 4);
            const uint32_t b = (static_cast<uint32_t>(blocks[i].qs[j]) >> 4) | ((high >> (j + 16) & 1u) << 4);
            dst[j] = static_cast<float>(static_cast<int32_t>(a) - 16) * d;
            dst[j + kBlockLength / 2] = static_cast<float>(static_cast<int32_t>(b) - 16) * d;
        }
    }
}

void dequantize_row_q5_1(const void *src, float *dst, uint64_t count) {
    const BlockQ5_1 *blocks = static_cast<const BlockQ5_1 *>(src);
    for (uint64_t i = 0; i < count / kBlockLength; ++i, dst += kBlockLength) {
        const float d = half_to_float(blocks[i].d);
        const float m = half_to_float(blocks[i].m);
        uint32_t high;
        memcpy(&high, blocks[i].qh, sizeof high);
        for (uint32_t j = 0; j < kBlockLength / 2; ++j) {
            const uint32_t a = (blocks[i].qs[j] & 0xfu) | ((high >> j & 1u) << 4);
            const uint32_t b = (static_cast<uint32_t>(blocks[i].qs[j]) >> 4) | ((high >> (j + 16) & 1u) << 4);
            dst[j] = static_cast<float>(a) * d + m;
            dst[j + kBlockLength / 2] = static_cast<float>(b) * d + m;
        }
    }
}

void dequantize_row_q8_0(const void *src, float *dst, uint64_t count) {
    const BlockQ8_0 *blocks = static_cast<const BlockQ8_0 *>(src);
    for (uint64_t i = 0; i < count / kBlockLength; ++i, dst += kBlockLength) {
        const float d = half_to_float(blocks[i].d);
        for (uint32_t j = 0; j < kBlockLength; ++j) dst[j] = static_cast<float>(blocks[i].qs[j]) * d;
    }
}

uint64_t row_bytes(int32_t type, uint64_t count) {
    const uint64_t length = block_length(type);
    if (length == 0 || count % length != 0) return 0;
    return count / length * block_bytes(type);
}

bool quantize_row(int32_t type, const float *src, void *dst, uint64_t count) {
    switch (type) {
        case kF32: return quantize_row_f32(src, dst, count);
        case kF16: return quantize_row_f16(src, dst, count);
        case kBF16: return quantize_row_bf16(src, dst, count);
        case kQ4_0: return quantize_row_q4_0(src, dst, count);
        case kQ4_1: return quantize_row_q4_1(src, dst, count);
        case kQ5_0: return quantize_row_q5_0(src, dst, count);
        case kQ5_1: return quantize_row_q5_1(src, dst, count);
        case kQ8_0: return quantize_row_q8_0(src, dst, count);
        case kQ4_K: return quantize_row_q4_k(src, dst, count);
        case kQ5_K: return quantize_row_q5_k(src, dst, count);
        case kQ2_K: return quantize_row_q2_k(src, dst, count);
        case kQ3_K: return quantize_row_q3_k(src, dst, count);
        case kQ6_K: return quantize_row_q6_k(src, dst, count);
        case kIQ4_NL:
        case kIQ4_XS:
        case kIQ3_XXS:
        case kIQ3_S: return quantize_row_iq(type, src, nullptr, dst, count);
        default: return false;
    }
}

void dequantize_row(int32_t type, const void *src, float *dst, uint64_t count) {
    switch (type) {
        case kF32: memcpy(dst, src, count * sizeof(float)); break;
        case kF16: dequantize_row_f16(src, dst, count); break;
        case kBF16: dequantize_row_bf16(src, dst, count); break;
        case kQ4_0: dequantize_row_q4_0(src, dst, count); break;
        case kQ4_1: dequantize_row_q4_1(src, dst, count); break;
        case kQ5_0: dequantize_row_q5_0(src, dst, count); break;
        case kQ5_1: dequantize_row_q5_1(src, dst, count); break;
        case kQ8_0: dequantize_row_q8_0(src, dst, count); break;
        case kQ4_K: dequantize_row_q4_k(src, dst, count); break;
        case kQ5_K: dequantize_row_q5_k(src, dst, count); break;
        case kQ2_K: dequantize_row_q2_k(src, dst, count); break;
        case kQ3_K: dequantize_row_q3_k(src, dst, count); break;
        case kQ6_K: dequantize_row_q6_k(src, dst, count); break;
        case kIQ4_NL:
        case kIQ4_XS:
        case kIQ3_XXS:
        case kIQ3_S: dequantize_row_iq(type, src, dst, count); break;
        default: break;
    }
}

}  // namespace rwkvflow

// Quantizers of the K types: super-blocks of 256 weights, whose scale and minimum of each 32 have 6 bits themselves.
//
// The search is that of ggml's reference quantizers (make_qkx2_quants and quantize_row_q4_K_ref in ggml-quants.c):
// several grids are laid from the minimum of a sub-block to its largest weight; for each, scale and minimum of least
// weighted squares; the best are kept, and the next grid starts there. A sum over a sub-block is taken in ggml's order:
// the eight sub-blocks of a super-block are worked on side by side, one a lane, so vector code reorders nothing and
// every processor writes the same bytes.
#include "quantize/dispatch.h"

namespace rwkvflow {
namespace {

constexpr uint32_t kLanes = kSuperBlockLength / kBlockLength;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Whole __attribute__((vector_size(kLanes * sizeof(float))));

INLINE Lanes all(float value) { return Lanes{value, value, value, value, value, value, value, value}; }

// The nearest whole number, ties to even, within [0, most]; 0 for a NaN.
INLINE Lanes nearest(Lanes t, float most) {
    t = t > all(0.0f) ? t : all(0.0f);
    t = t < all(most) ? t : all(most);
    const Lanes round = all(12582912.0f);  // 1.5 * 2^23: sums with it are whole
    return (t + round) - round;
}

INLINE float nearest_six_bits(float t) {
    t = t > 0.0f ? t : 0.0f;
    t = t < 63.0f ? t : 63.0f;
    return (t + 12582912.0f) - 12582912.0f;
}

// What is found for each sub-block: x is nearly scale * q - least, where q = nearest(steps * (x - from)).
struct Fit {
    Lanes scale, least, steps, from;
};

// Grids have most + first + 0.1 * i steps, i <= tries. Errors count by |x| and the root of the mean square together.
INLINE void search(const Lanes x[kBlockLength], float most, float first, int32_t tries, Fit *fit) {
    Lanes squares = all(0.0f), average;
    for (uint32_t i = 0; i < kBlockLength; ++i) squares += x[i] * x[i];
    for (uint32_t lane = 0; lane < kLanes; ++lane)
        average[lane] = __builtin_sqrtf(squares[lane] / static_cast<float>(kBlockLength));
    Lanes weight[kBlockLength];
    for (uint32_t i = 0; i < kBlockLength; ++i) weight[i] = average + (x[i] < all(0.0f) ? -x[i] : x[i]);

    Lanes low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
    for (uint32_t i = 1; i < kBlockLength; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    low = low > all(0.0f) ? all(0.0f) : low;
    Lanes inverse = all(most) / (high - low);
    Lanes best_scale = all(1.0f) / inverse, best_low = low, best_error = all(0.0f), steps = inverse, from = low;
    for (uint32_t i = 0; i < kBlockLength; ++i) {
        const Lanes off = best_scale * nearest(inverse * (x[i] - low), most) + low - x[i];
        best_error += weight[i] * (off * off);
    }
    for (int32_t grid = 0; grid <= tries; ++grid) {
        inverse = all(first + 0.1f * static_cast<float>(grid) + most) / (high - best_low);
        Lanes q[kBlockLength], sum_q = all(0.0f), sum_qq = all(0.0f), sum_xq = all(0.0f);
        for (uint32_t i = 0; i < kBlockLength; ++i) {
            q[i] = nearest(inverse * (x[i] - best_low), most);
            const Lanes wq = weight[i] * q[i];
            sum_q += wq;
            sum_qq += wq * q[i];
            sum_xq += wq * x[i];
        }
        const Lanes divisor = sum_w * sum_qq - sum_q * sum_q;
        Lanes this_scale = (sum_w * sum_xq - sum_x * sum_q) / divisor;
        Lanes this_low = (sum_qq * sum_x - sum_q * sum_xq) / divisor;
        // Nothing may be added to weights, only taken off: then the line goes through zero.
        this_scale = this_low > all(0.0f) ? sum_xq / sum_qq : this_scale;
        this_low = this_low > all(0.0f) ? all(0.0f) : this_low;
        Lanes error = all(0.0f);
        for (uint32_t i = 0; i < kBlockLength; ++i) {
            const Lanes off = this_scale * q[i] + this_low - x[i];
            error += weight[i] * (off * off);
        }
        const Whole better = (divisor > all(0.0f)) & (error < best_error);
        steps = better ? inverse : steps;
        from = better ? best_low : from;
        best_scale = better ? this_scale : best_scale;
        best_low = better ? this_low : best_low;
        best_error = better ? error : best_error;
    }
    // All zero, or all the same below it: the minimum alone says it.
    const Whole flat = high == low;
    fit->scale = flat ? all(0.0f) : best_scale;
    fit->least = flat ? -low : -best_low;
    fit->steps = flat ? all(0.0f) : steps;
    fit->from = from;
}

// What stands at scale(sub) and minimum(sub); see BlockQ4_K.
INLINE void six_bits(const uint8_t *scales, uint32_t sub, float *scale, float *least) {
    if (sub < 4) {
        *scale = static_cast<float>(scales[sub] & 63);
        *least = static_cast<float>(scales[sub + 4] & 63);
    } else {
        *scale = static_cast<float>((scales[sub + 4] & 15) | (scales[sub - 4] >> 6 << 4));
        *least = static_cast<float>((scales[sub + 4] >> 4) | (scales[sub] >> 6 << 4));
    }
}

INLINE float largest(const Lanes &values) {
    float out = 0.0f;
    for (uint32_t lane = 0; lane < kLanes; ++lane) out = values[lane] > out ? values[lane] : out;
    return out;
}

template <class Block>
struct Codec;
template <>
struct Codec<BlockQ4_K> {
    static constexpr float most = 15.0f, first = -1.0f;
    static constexpr int32_t tries = 20;
    static constexpr bool five = false;
};
template <>
struct Codec<BlockQ5_K> {
    static constexpr float most = 31.0f, first = -0.5f;
    static constexpr int32_t tries = 15;
    static constexpr bool five = true;
};

template <class Block>
INLINE bool write_super_block(const float *src, Block *y) {
    using C = Codec<Block>;
    uint32_t bad = 0;
    for (uint32_t i = 0; i < kSuperBlockLength; ++i)
        bad |= static_cast<uint32_t>((float_bits(src[i]) & kMagnitude) >= 0x7f800000u);
    Lanes x[kBlockLength];
    Fit fit;
    for (uint32_t i = 0; i < kBlockLength; ++i)
        for (uint32_t lane = 0; lane < kLanes; ++lane) x[i][lane] = bad ? 0.0f : src[lane * kBlockLength + i];
    search(x, C::most, C::first, C::tries, &fit);

    const float most_scale = largest(fit.scale), most_least = largest(fit.least);
    const float to_scale = most_scale > 0.0f ? 63.0f / most_scale : 0.0f;
    const float to_least = most_least > 0.0f ? 63.0f / most_least : 0.0f;
    memset(y->scales, 0, sizeof y->scales);
    for (uint32_t sub = 0; sub < kLanes; ++sub) {
        const uint32_t s = static_cast<uint32_t>(nearest_six_bits(to_scale * fit.scale[sub]));
        const uint32_t m = static_cast<uint32_t>(nearest_six_bits(to_least * fit.least[sub]));
        if (sub < 4) {
            y->scales[sub] = static_cast<uint8_t>(s);
            y->scales[sub + 4] = static_cast<uint8_t>(m);
        } else {
            y->scales[sub + 4] = static_cast<uint8_t>((s & 15u) | ((m & 15u) << 4));
            y->scales[sub - 4] = static_cast<uint8_t>(y->scales[sub - 4] | (s >> 4 << 6));
            y->scales[sub] = static_cast<uint8_t>(y->scales[sub] | (m >> 4 << 6));
        }
    }
    y->d = bad ? static_cast<uint16_t>(0x7e00u) : float_to_half(most_scale / 63.0f);
    y->dmin = bad ? static_cast<uint16_t>(0x7e00u) : float_to_half(most_least / 63.0f);

    // Weights once more, for the scales as they are now; where a scale is 0 by now they do not matter, and stay as in
    // ggml.
    Lanes scale, least;
    const float d = half_to_float(y->d), dmin = half_to_float(y->dmin);
    for (uint32_t sub = 0; sub < kLanes; ++sub) {
        float s, m;
        six_bits(y->scales, sub, &s, &m);
        scale[sub] = d * s;
        least[sub] = dmin * m;
    }
    memset(y->qs, 0, sizeof y->qs);
    if constexpr (C::five) memset(y->qh, 0, sizeof y->qh);
    for (uint32_t i = 0; i < kBlockLength; ++i) {
        const Lanes t = scale != all(0.0f) ? (x[i] + least) / scale : fit.steps * (x[i] - fit.from);
        const Whole q = __builtin_convertvector(nearest(t, C::most), Whole);
        for (uint32_t pair = 0; pair < kLanes / 2; ++pair)
            y->qs[kBlockLength * pair + i] = static_cast<uint8_t>((q[2 * pair] & 15) | ((q[2 * pair + 1] & 15) << 4));
        if constexpr (C::five)
            for (uint32_t lane = 0; lane < kLanes; ++lane)
                y->qh[i] = static_cast<uint8_t>(y->qh[i] | (q[lane] >> 4 << lane));
    }
    return half_is_finite(y->d) && half_is_finite(y->dmin);
}

template <class Block>
INLINE bool write_super_blocks(const float *src, void *dst, uint64_t count) {
    Block *blocks = static_cast<Block *>(dst);
    bool finite = true;
    for (uint64_t i = 0; i < count / kSuperBlockLength; ++i)
        finite &= write_super_block(src + i * kSuperBlockLength, blocks + i);
    return finite;
}

template <class Block>
INLINE void read_super_blocks(const void *src, float *dst, uint64_t count) {
    const Block *blocks = static_cast<const Block *>(src);
    for (uint64_t i = 0; i < count / kSuperBlockLength; ++i) {
        const Block &block = blocks[i];
        const float d = half_to_float(block.d), dmin = half_to_float(block.dmin);
        for (uint32_t sub = 0; sub < kLanes; ++sub, dst += kBlockLength) {
            float scale, least;
            six_bits(block.scales, sub, &scale, &least);
            scale *= d;
            least *= dmin;
            for (uint32_t j = 0; j < kBlockLength; ++j) {
                uint32_t q = block.qs[sub / 2 * kBlockLength + j] >> (sub % 2 * 4) & 15u;
                if constexpr (Codec<Block>::five) q |= (block.qh[j] >> sub & 1u) << 4;
                dst[j] = static_cast<float>(q) * scale - least;
            }
        }
    }
}

}  // namespace

DEFINE_WRITER(quantize_row_q4_k, write_super_blocks<BlockQ4_K>(src, dst, count))
DEFINE_WRITER(quantize_row_q5_k, write_super_blocks<BlockQ5_K>(src, dst, count))

void dequantize_row_q4_k(const void *src, float *dst, uint64_t count) { read_super_blocks<BlockQ4_K>(src, dst, count); }

void dequantize_row_q5_k(const void *src, float *dst, uint64_t count) { read_super_blocks<BlockQ5_K>(src, dst, count); }

}  // namespace rwkvflow

// The searches behind the K and IQ types: integers q and a scale (and a minimum) of least weighted squares for a short
// row.
//
// A file has to equal what llama.cpp's quantizer writes, so each search takes the same sums in the same order in single
// precision (compile with -ffp-contract=off): ggml-quants.c has them as make_qx_quants, make_q3_quants,
// make_qkx2_quants, make_qkx3_quants and make_qp_quants. Here a candidate scale is an inverse `steps`, q =
// nearest(steps * x), and what is common to them is written once. Rows are finite: whoever calls has looked.
#pragma once

#include <stdint.h>

#include "quantize/blocks.h"

namespace rwkvflow {
namespace {

constexpr float kNothing = 1e-15f;  // rows whose largest weight is below count as zero

inline float magnitude(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }

// The nearest whole number, ties to even; |t| below 2^22.
inline int32_t nearest_whole(float t) {
    return static_cast<int32_t>(float_bits(t + 12582912.0f) & 0x007fffffu) - 0x00400000;
}

inline int32_t within(int32_t low, int32_t value, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

// The first of the values furthest from zero.
inline float furthest(uint32_t n, const float *x) {
    float most = 0.0f, found = 0.0f;
    for (uint32_t i = 0; i < n; ++i) {
        if (magnitude(x[i]) > most) {
            most = magnitude(x[i]);
            found = x[i];
        }
    }
    return found;
}

// Sums of w x q and w q q: the scale of least squares is their quotient, and what it gains is scale * xq.
struct Moments {
    float xq = 0.0f, qq = 0.0f;

    void add(float w, float x, float q) {
        xq += w * x * q;
        qq += w * q * q;
    }
    // The same with the product of weight and q first, as the IQ4 types sum it.
    void add_product(float w, float q, float x) {
        xq += w * q * x;
        qq += w * q * q;
    }
    bool beats(float best) const { return qq > 0.0f && xq * xq > best * qq; }
};

// x ~ scale * (q - half), q in [0, 2 half): the scale, 0 for a row of zeros. Weights are `w`, or x squared where it is
// null.
inline float fit_symmetric(uint32_t n, int32_t half, const float *x, const float *w, uint8_t *q) {
    const float peak = furthest(n, x);
    for (uint32_t i = 0; i < n; ++i) q[i] = 0;
    if (magnitude(peak) < kNothing) return 0.0f;
    float scale = 0.0f, best = 0.0f;
    for (int32_t turn = 0; turn < 19; ++turn) {
        // First the peak's own grid, then those a little finer and coarser: -0.9 to 0.9 steps, without 0.
        const int32_t offset = turn == 0 ? 0 : turn <= 9 ? turn - 10 : turn - 9;
        const float steps = turn == 0 ? -static_cast<float>(half) / peak
                                      : -(static_cast<float>(half) + 0.1f * static_cast<float>(offset)) / peak;
        Moments sums;
        for (uint32_t i = 0; i < n; ++i) {
            const int32_t whole = within(-half, nearest_whole(steps * x[i]), half - 1);
            sums.add(w != nullptr ? w[i] : x[i] * x[i], x[i], static_cast<float>(whole));
        }
        if (turn != 0 && !sums.beats(best)) continue;
        for (uint32_t i = 0; i < n; ++i) {
            q[i] = static_cast<uint8_t>(half + within(-half, nearest_whole(steps * x[i]), half - 1));
        }
        scale = sums.qq != 0.0f ? sums.xq / sums.qq : 0.0f;
        best = scale * sums.xq;
    }
    return scale;
}

// The same for q in [0, 8), weights x squared, by changing one q after the other as long as that helps.
inline float fit_three_bits(uint32_t n, const float *x, uint8_t *q) {
    constexpr int32_t kHalf = 4;
    const float peak = furthest(n, x);
    for (uint32_t i = 0; i < n; ++i) q[i] = 0;
    if (magnitude(peak) < kNothing) return 0.0f;
    const float steps = -static_cast<float>(kHalf) / peak;
    int32_t whole[kBlockLength];
    Moments sums;
    for (uint32_t i = 0; i < n; ++i) {
        whole[i] = within(-kHalf, nearest_whole(steps * x[i]), kHalf - 1);
        sums.add(x[i] * x[i], x[i], static_cast<float>(whole[i]));
    }
    bool changed = true;
    for (int32_t round = 0; round < 5 && changed; ++round) {
        changed = false;
        for (uint32_t i = 0; i < n; ++i) {
            const float w = x[i] * x[i], now = static_cast<float>(whole[i]);
            Moments rest{sums.xq - w * x[i] * now, 0.0f};
            if (!(rest.xq > 0.0f)) continue;
            rest.qq = sums.qq - w * now * now;
            const int32_t better = within(-kHalf, nearest_whole(x[i] * rest.qq / rest.xq), kHalf - 1);
            if (better == whole[i]) continue;
            rest.add(w, x[i], static_cast<float>(better));
            if (!(rest.qq > 0.0f && rest.xq * rest.xq * sums.qq > sums.xq * sums.xq * rest.qq)) continue;
            whole[i] = better;
            sums = rest;
            changed = true;
        }
    }
    for (uint32_t i = 0; i < n; ++i) q[i] = static_cast<uint8_t>(whole[i] + kHalf);
    return sums.qq > 0.0f ? sums.xq / sums.qq : 0.0f;
}

// How fit_with_minimum looks: grids of most + first + step * i steps, i <= tries; errors squared or absolute.
struct Grids {
    float first, step;
    int32_t tries;
    bool absolute;
};

// x ~ scale * q - least, q in [0, most], least >= 0: the scale; `least` is set.
inline float fit_with_minimum(uint32_t n, int32_t most, const float *x, const float *w, Grids grids, uint8_t *q,
                              float *least) {
    float low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (uint32_t i = 1; i < n; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (low > 0.0f) low = 0.0f;
    *least = -low;
    for (uint32_t i = 0; i < n; ++i) q[i] = 0;
    if (high <= low) return 0.0f;

    const float top = static_cast<float>(most);
    const auto loss = [&](float scale, float base, const uint8_t *codes) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < n; ++i) {
            const float off = scale * static_cast<float>(codes[i]) + base - x[i];
            sum += w[i] * (grids.absolute ? magnitude(off) : off * off);
        }
        return sum;
    };
    float steps = top / (high - low), scale = 1.0f / steps;
    for (uint32_t i = 0; i < n; ++i) q[i] = static_cast<uint8_t>(within(0, nearest_whole(steps * (x[i] - low)), most));
    float best = loss(scale, low, q);
    uint8_t trial[kBlockLength];
    for (int32_t grid = 0; grid <= grids.tries; ++grid) {
        steps = (grids.first + grids.step * static_cast<float>(grid) + top) / (high - low);
        float sum_q = 0.0f, sum_qq = 0.0f, sum_xq = 0.0f;
        for (uint32_t i = 0; i < n; ++i) {
            trial[i] = static_cast<uint8_t>(within(0, nearest_whole(steps * (x[i] - low)), most));
            const float code = static_cast<float>(trial[i]), wq = w[i] * code;
            sum_q += wq;
            sum_qq += wq * code;
            sum_xq += wq * x[i];
        }
        const float divisor = sum_w * sum_qq - sum_q * sum_q;
        if (!(divisor > 0.0f)) continue;
        float this_scale = (sum_w * sum_xq - sum_x * sum_q) / divisor;
        float base = (sum_qq * sum_x - sum_q * sum_xq) / divisor;
        if (base > 0.0f) {  // nothing may be added to weights, only taken off: the line goes through zero
            base = 0.0f;
            this_scale = sum_xq / sum_qq;
        }
        const float error = loss(this_scale, base, trial);
        if (!(error < best)) continue;
        for (uint32_t i = 0; i < n; ++i) q[i] = trial[i];
        best = error;
        scale = this_scale;
        low = base;
    }
    *least = -low;
    return scale;
}

// Scales of sub-blocks once more as whole numbers: x ~ scale * q, x >= 0, q in [0, most], weighted by `w`; the scale.
inline float fit_scales(uint32_t n, int32_t most, const float *x, const float *w, uint8_t *q) {
    float high = 0.0f;
    for (uint32_t i = 0; i < n; ++i) high = x[i] > high ? x[i] : high;
    for (uint32_t i = 0; i < n; ++i) q[i] = 0;
    if (high < kNothing) return 0.0f;
    const float top = static_cast<float>(most);
    const auto code_of = [&](float steps, uint32_t i) {
        const int32_t whole = nearest_whole(steps * x[i]);
        return whole > most ? most : whole;
    };
    float steps = top / high, best = 0.0f;
    for (int32_t grid = 0; grid < 9; ++grid) {
        const int32_t offset = grid == 0 ? 0 : grid <= 4 ? grid - 5 : grid - 4;
        const float trial = grid == 0 ? steps : (0.1f * static_cast<float>(offset) + top) / high;
        const float scale = 1.0f / trial;
        float error = 0.0f;
        for (uint32_t i = 0; i < n; ++i) {
            const float off =
                x[i] - scale * static_cast<float>(grid == 0 ? nearest_whole(trial * x[i]) : code_of(trial, i));
            error += w[i] * off * off;
        }
        if (grid != 0 && !(error < best)) continue;
        best = error;
        steps = trial;
    }
    Moments sums;
    for (uint32_t i = 0; i < n; ++i) {
        q[i] = static_cast<uint8_t>(code_of(steps, i));
        sums.add(w[i], x[i], static_cast<float>(q[i]));
    }
    bool changed = true;
    for (int32_t round = 0; round < 5 && changed; ++round) {
        changed = false;
        for (uint32_t i = 0; i < n; ++i) {
            const float now = static_cast<float>(q[i]);
            Moments rest{sums.xq - w[i] * x[i] * now, sums.qq - w[i] * now * now};
            if (!(rest.xq > 0.0f && rest.qq > 0.0f)) continue;
            int32_t better = nearest_whole(x[i] * rest.qq / rest.xq);
            better = better > most ? most : better;
            if (better == static_cast<int32_t>(q[i])) continue;
            rest.add(w[i], x[i], static_cast<float>(better));
            if (!(rest.xq * rest.xq * sums.qq > sums.xq * sums.xq * rest.qq)) continue;
            q[i] = static_cast<uint8_t>(better);
            sums = rest;
            changed = true;
        }
    }
    return sums.qq > 0.0f ? sums.xq / sums.qq : 0.0f;
}

// ---- rows and blocks
// ----------------------------------------------------------------------------------------------------

// Mean of the squares of n values.
inline float mean_square(const float *x, uint64_t n) {
    float sum = 0.0f;
    for (uint64_t i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum / static_cast<float>(n);
}

// What counts in a search: importance by the root of the mean square and the weight's own.
inline void spread(uint32_t n, const float *x, const float *importance, float mean, float *w) {
    for (uint32_t i = 0; i < n; ++i) w[i] = importance[i] * __builtin_sqrtf(mean + x[i] * x[i]);
}

inline float sum_of(uint32_t n, const float *w) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < n; ++i) sum += w[i];
    return sum;
}

inline bool row_is_finite(const float *x, uint64_t count) {
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; ++i) bad |= static_cast<uint32_t>((float_bits(x[i]) & 0x7fffffffu) >= 0x7f800000u);
    return bad == 0;
}

// A scale that is an infinity: of weights that are finite and too large for half precision.
template <class Block>
bool scales_are_finite(const Block &block) {
    if constexpr (requires { block.dmin; }) return half_is_finite(block.d) && half_is_finite(block.dmin);
    if constexpr (requires { block.m; }) return half_is_finite(block.d) && half_is_finite(block.m);
    return half_is_finite(block.d);
}

// Each block of `length` weights by `write(x, importance or null, block)`. A block with values that are not finite gets
// a scale that is NaN, so that whoever reads it sees.
template <uint32_t length, class Block, class Write>
bool write_each(const float *src, const float *importance, void *dst, uint64_t count, Write write) {
    Block *blocks = static_cast<Block *>(dst);
    bool finite = true;
    for (uint64_t i = 0; i < count / length; ++i) {
        if (row_is_finite(src + i * length, length)) {
            write(src + i * length, importance != nullptr ? importance + i * length : nullptr, &blocks[i]);
        } else {
            memset(&blocks[i], 0, sizeof(Block));
            blocks[i].d = 0x7e00u;
        }
        finite &= scales_are_finite(blocks[i]);
    }
    return finite;
}

}  // namespace
}  // namespace rwkvflow

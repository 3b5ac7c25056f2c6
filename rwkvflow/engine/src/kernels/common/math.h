// Elementary functions of vectors of 16 floats.
//
// The functions use additions, multiplications, divisions and bits only, in a fixed order, so that they give the same
// bits on every processor. Polynomials are least-maximum fits of our own: exp is within 1.1 units in the last place,
// tanh within 1.5, the logistic function within 2.5 (tests/engine measures it).
#pragma once

#include "kernels/common/vectors.h"

namespace rwkvflow {
namespace {

// The first m of 16, zeros behind them.
inline V16 load_some(const float *at, uint32_t m) {
    if (m == 16) return load16(at);
    float some[16] = {};
    for (uint32_t i = 0; i < m; ++i) some[i] = at[i];
    return load16(some);
}
inline void store_some(float *at, V16 value, uint32_t m) {
    if (m == 16) return store(at, value);
    float some[16];
    store(some, value);
    for (uint32_t i = 0; i < m; ++i) at[i] = some[i];
}
inline V16 keep_some(V16 value, uint32_t m) {
    if (m == 16) return value;
    float some[16];
    store(some, value);
    return load_some(some, m);
}

// Sums of lanes, always by halves: i with i + 8, then i + 4, ...
template <typename Eight>
inline float sum_lanes8(const Eight &v) {
    const float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
}
inline float sum_lanes16(V16 v) { return sum_lanes8(sum_of_halves(v)); }

inline V16 maximum(V16 a, V16 b) { return select(a > b, a, b); }
inline V16 absolute(V16 v) { return as_float(as_bits(v) & 0x7fffffffu); }
inline float square_root(float v) { return __builtin_sqrtf(v); }

inline V16 exponential(V16 x) {
    // Beyond these the result is 0 or infinity anyway; a NaN passes both comparisons unchanged.
    x = select(x < -105.0f, splat(-105.0f), x);
    x = select(x > 90.0f, splat(90.0f), x);
    // x = n * ln 2 + r; ln 2 in two parts, the first short enough for n times it to be exact.
    const V16 round = splat(12582912.0f);  // 1.5 * 2^23
    const V16 shifted = x * 1.44269504f + round;
    const V16 n = shifted - round;
    const V16 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    V16 p = splat(0.001381453825160861f);
    p = p * r + 0.00836874544620514f;
    p = p * r + 0.04166838899254799f;
    p = p * r + 0.1666652113199234f;
    p = p * r + 0.4999999403953552f;
    p = (p * r) * r + r + 1.0f;
    // 2^n in two steps, so that subnormal results and the largest ones come out right. The low bits of `shifted` hold
    // n.
    const U16 whole = as_bits(shifted) - 0x4b400000u + 512u;  // n + 512
    const U16 half = whole >> 1;                              // n / 2 + 256, rounded down
    const V16 first = as_float((half - 256u + 127u) << 23), second = as_float((whole - half - 256u + 127u) << 23);
    return p * first * second;
}

inline V16 logistic(V16 x) { return 1.0f / (exponential(-x) + 1.0f); }

inline V16 tangent(V16 x) {
    const V16 size = absolute(x);
    const V16 far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    const V16 y = x * x;
    V16 p = splat(-0.005704978480935097f);
    p = p * y + 0.020639078691601753f;
    p = p * y + -0.05373971164226532f;
    p = p * y + 0.13331441581249237f;
    p = p * y + -0.3333328068256378f;
    const V16 near = x + x * y * p;
    const V16 signed_far = as_float(as_bits(far) | (as_bits(x) & 0x80000000u));
    return select(size < 0.625f, near, signed_far);
}

}  // namespace
}  // namespace rwkvflow

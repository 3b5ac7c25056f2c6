// The second half of body.inc: norms, elementwise functions, and the recurrences of each version.
// Elementwise functions go through each16, which pads the last piece, so a result does not depend on how columns are cut.
#pragma once

namespace rwkvflow {
namespace {

// Sums x[i] over lanes i % 16.
template <typename Value>
inline V16 lane_sums(uint32_t n, Value value) {
    V16 sum = {};
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) sum += value(i, 16u);
    if (i < n) sum += value(i, n - i);
    return sum;
}

template <typename Body>
inline void each16(uint32_t n, Body body) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) body(i, 16u);
    if (i < n) body(i, n - i);
}

void moments(const float *x, uint32_t n, float eps, float *mean, float *scale) {
    const float average =
        sum_lanes16(lane_sums(n, [=](uint32_t i, uint32_t m) { return load_some(x + i, m); })) / static_cast<float>(n);
    const float squares = sum_lanes16(lane_sums(n, [=](uint32_t i, uint32_t m) {
        const V16 off = keep_some(load_some(x + i, m) - average, m);
        return off * off;
    }));
    *mean = average;
    *scale = 1.0f / square_root(squares / static_cast<float>(n) + eps);
}

void normalize(const float *x, float mean, float scale, const float *w, const float *b, float *out, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        store_some(out + i, (load_some(x + i, m) - mean) * scale * load_some(w + i, m) + load_some(b + i, m), m);
    });
}

void shift(const float *x, const float *before, const float *mix, const float *more, float *out, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        const V16 now = load_some(x + i, m);
        V16 share = load_some(mix + i, m);
        if (more != nullptr) share += load_some(more + i, m);
        store_some(out + i, now + (load_some(before + i, m) - now) * share, m);
    });
}

void add(float *x, const float *y, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) { store_some(x + i, load_some(x + i, m) + load_some(y + i, m), m); });
}

void add_gated(float *x, const float *gate, const float *y, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        store_some(x + i, load_some(x + i, m) + logistic(load_some(gate + i, m)) * load_some(y + i, m), m);
    });
}

void relu_squared(float *x, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        const V16 value = load_some(x + i, m);
        const V16 positive = value < 0.0f ? splat(0.0f) : value;
        store_some(x + i, positive * positive, m);
    });
}

void sigmoid(float *x, const float *bias, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        V16 value = load_some(x + i, m);
        if (bias != nullptr) value += load_some(bias + i, m);
        store_some(x + i, logistic(value), m);
    });
}

void hyperbolic_tangent(float *x, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) { store_some(x + i, tangent(load_some(x + i, m)), m); });
}

void multiply(float *x, const float *y, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) { store_some(x + i, load_some(x + i, m) * load_some(y + i, m), m); });
}

void multiply_silu(float *x, const float *gate, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        const V16 g = load_some(gate + i, m);
        store_some(x + i, load_some(x + i, m) * (g * logistic(g)), m);
    });
}

void decay6(float *w, const float *bias, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        store_some(w + i, exponential(-exponential(load_some(w + i, m) + load_some(bias + i, m))), m);
    });
}

void decay7(float *w, const float *bias, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        store_some(w + i, exponential(logistic(load_some(w + i, m) + load_some(bias + i, m)) * -0.6065306597f), m);
    });
}

void wkv4(const float *r, const float *k, const float *v, const float *first, const float *decay, const float *const in[3],
          float *const state[3], float *out, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        const V16 key = load_some(k + i, m), value = load_some(v + i, m);
        const V16 a = load_some(in[0] + i, m), b = load_some(in[1] + i, m), p = load_some(in[2] + i, m);
        const V16 now = key + load_some(first + i, m);
        V16 top = maximum(p, now);
        V16 old_share = exponential(p - top), new_share = exponential(now - top);
        const V16 wkv = (old_share * a + new_share * value) / (old_share * b + new_share);
        store_some(out + i, logistic(load_some(r + i, m)) * wkv, m);
        const V16 later = p + load_some(decay + i, m);
        top = maximum(later, key);
        old_share = exponential(later - top), new_share = exponential(key - top);
        store_some(state[0] + i, old_share * a + new_share * value, m);
        store_some(state[1] + i, old_share * b + new_share, m);
        store_some(state[2] + i, top, m);
    });
}

template <int M>
inline void wkv5_part(const float *r, const float *k, const float *v, const float *first, const float *decay, const float *in,
                      float *state, float *out, uint32_t n, uint32_t j, uint32_t m) {
    V16 value[M], sum[M] = {};
    for (int p = 0; p < M; ++p) value[p] = load_some(v + j + 16 * p, m);
    for (uint32_t i = 0; i < n; ++i)
        for (int p = 0; p < M; ++p) {
            const size_t at = static_cast<size_t>(i) * n + j + 16 * p;
            const V16 product = value[p] * splat(k[i]), old = load_some(in + at, m);
            sum[p] = fused(fused(product, splat(first[i]), old), splat(r[i]), sum[p]);
            store_some(state + at, fused(old, splat(decay[i]), product), m);
        }
    for (int p = 0; p < M; ++p) store_some(out + j + 16 * p, sum[p], m);
}

void wkv5(const float *r, const float *k, const float *v, const float *first, const float *decay, const float *in, float *state,
          float *out, uint32_t n) {
    uint32_t j = 0;
    for (; j + 64 <= n; j += 64) wkv5_part<4>(r, k, v, first, decay, in, state, out, n, j, 16);
    each16(n - j, [=](uint32_t c, uint32_t m) { wkv5_part<1>(r, k, v, first, decay, in, state, out, n, j + c, m); });
}

void prepare7(float *k, const float *a, const float *k_k, const float *k_a, float *kk, float *b, uint32_t n) {
    const float squares = sum_lanes16(lane_sums(n, [=](uint32_t i, uint32_t m) {
        const V16 scaled = load_some(k + i, m) * load_some(k_k + i, m);
        return scaled * scaled;
    }));
    const float length = square_root(squares);
    const float divisor = length < 1e-12f ? 1e-12f : length;
    each16(n, [=](uint32_t i, uint32_t m) {
        const V16 key = load_some(k + i, m), rate = load_some(a + i, m);
        const V16 unit = key * load_some(k_k + i, m) / divisor;
        store_some(kk + i, -unit, m);
        store_some(b + i, unit * rate, m);
        store_some(k + i, key * ((rate - 1.0f) * load_some(k_a + i, m) + 1.0f), m);
    });
}

void lerp(float *x, const float *first, const float *mix, uint32_t n) {
    each16(n, [=](uint32_t i, uint32_t m) {
        const V16 value = load_some(x + i, m);
        store_some(x + i, value + (load_some(first + i, m) - value) * load_some(mix + i, m), m);
    });
}

// Channels of values [i, i + 16 * M), the last of them `m` where M is 1. All M together, so that sums wait less for each other.
template <int M>
inline void wkv7_part(const float *r, const float *w, const float *k, const float *v, const float *kk, const float *b, const float *in,
                      float *state, float *out, uint32_t n, uint32_t i, uint32_t m) {
    V16 correction[M] = {}, value[M], sum[M] = {};
    for (uint32_t j = 0; j < n; ++j)
        for (int p = 0; p < M; ++p)
            correction[p] = fused(load_some(in + static_cast<size_t>(j) * n + i + 16 * p, m), splat(kk[j]), correction[p]);
    for (int p = 0; p < M; ++p) value[p] = load_some(v + i + 16 * p, m);
    for (uint32_t j = 0; j < n; ++j)
        for (int p = 0; p < M; ++p) {
            const size_t at = static_cast<size_t>(j) * n + i + 16 * p;
            V16 next = value[p] * splat(k[j]);
            next = fused(correction[p], splat(b[j]), next);
            next = fused(load_some(in + at, m), splat(w[j]), next);
            store_some(state + at, next, m);
            sum[p] = fused(next, splat(r[j]), sum[p]);
        }
    for (int p = 0; p < M; ++p) store_some(out + i + 16 * p, sum[p], m);
}

void wkv7(const float *r, const float *w, const float *k, const float *v, const float *kk, const float *b, const float *in,
          float *state, float *out, uint32_t n) {
    uint32_t i = 0;
    for (; i + 64 <= n; i += 64) wkv7_part<4>(r, w, k, v, kk, b, in, state, out, n, i, 16);
    each16(n - i, [=](uint32_t c, uint32_t m) { wkv7_part<1>(r, w, k, v, kk, b, in, state, out, n, i + c, m); });
}

void bonus7(const float *r, const float *k, const float *r_k, const float *v, float *out, uint32_t n) {
    const float share = sum_lanes16(lane_sums(
        n, [=](uint32_t i, uint32_t m) { return load_some(r + i, m) * load_some(k + i, m) * load_some(r_k + i, m); }));
    each16(n, [=](uint32_t i, uint32_t m) { store_some(out + i, load_some(out + i, m) + load_some(v + i, m) * share, m); });
}

}  // namespace
}  // namespace rwkvflow

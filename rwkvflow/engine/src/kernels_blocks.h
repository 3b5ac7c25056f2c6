// Products with quantized matrices, for instruction sets of 256 or 128 bits and for none. Block b of a row adds to eight lanes
// of one register, scaled; minima, times the sums of the inputs, to another sum. As in kernels_floats.h, rows and tokens may be
// taken together in any number.
#pragma once

namespace rwkvflow {
namespace {

#if !defined(RWKV_HAS_BLOCKS)
// The weights of a block as bytes, less the offset of the types that have one.
template <int TYPE>
inline void unpack_block(const uint8_t *block, int8_t out[32]) {
    if constexpr (TYPE == kQ8_0) {
        memcpy(out, block + 2, 32);
    } else {
        uint32_t high = 0;
        if constexpr (Block<TYPE>::five) memcpy(&high, block + Block<TYPE>::high, 4);
        for (int i = 0; i < 16; ++i) {
            const uint8_t both = block[Block<TYPE>::quants + i];
            out[i] = static_cast<int8_t>(static_cast<int>((both & 15) | ((high >> i) & 1) << 4) - Block<TYPE>::offset);
            out[i + 16] = static_cast<int8_t>(static_cast<int>((both >> 4) | ((high >> (i + 16)) & 1) << 4) - Block<TYPE>::offset);
        }
    }
}
// The same of a block, less its offset.
template <int TYPE>
inline I8 block_sums(const uint8_t *block, const int8_t *q) {
    int8_t w[32];
    unpack_block<TYPE>(block, w);
    return byte_sums(w, q);
}
#endif

// A row against one token.
template <int TYPE>
inline float row_blocks(const uint8_t *w, const int8_t *q, const float *d, const float *s, uint32_t blocks) {
    V8 sum = {};
    float minima = 0;
    for (uint32_t b = 0; b < blocks; ++b, w += Block<TYPE>::bytes) {
        prefetch(w);
        sum = fused(to_float(block_sums<TYPE>(w, q + b * size_t{32})), splat8(half_scale(w) * d[b]), sum);
        if constexpr (Block<TYPE>::min) minima += half_scale(w + 2) * s[b];
    }
    return sum_lanes8(sum) + minima;
}

template <int TYPE>
inline void unpack(const Panel &panel, const uint8_t *w, size_t row_bytes, uint32_t rows) {
    for (uint32_t r = 0; r < rows; ++r)
        for (size_t b = 0; b < panel.blocks; ++b) {
            const uint8_t *at = w + r * row_bytes + b * Block<TYPE>::bytes;
            unpack_block<TYPE>(at, panel.q + r * panel.cols + b * 32);
            panel.scale[r * panel.blocks + b] = half_scale(at);
            if constexpr (Block<TYPE>::min) panel.least[r * panel.blocks + b] = half_scale(at + 2);
        }
}

template <int R, int T, bool MIN>
inline void tile_blocks(const Panel &panel, uint32_t row, const Activations &x, uint32_t token, float *y, size_t ldy) {
    V8 sums[R][T] = {};
    float minima[R][T] = {};
    const size_t stride = x.stride, blocks = stride / 32;
    for (size_t b = 0; b < panel.blocks; ++b)
        for (int r = 0; r < R; ++r) {
            const size_t at = (row + static_cast<size_t>(r)) * panel.blocks + b;
            for (int t = 0; t < T; ++t) {
                const size_t in = (token + static_cast<size_t>(t)) * blocks + b;
                const I8 whole = byte_sums(panel.q + at * 32, x.q + in * 32);
                sums[r][t] = fused(to_float(whole), splat8(panel.scale[at] * x.d[in]), sums[r][t]);
                if constexpr (MIN) minima[r][t] += panel.least[at] * x.s[in];
            }
        }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) y[static_cast<size_t>(t) * ldy + static_cast<size_t>(r)] = sum_lanes8(sums[r][t]) + minima[r][t];
}

template <int TYPE>
void matmul_type(const Product &p) {
    constexpr bool MIN = Block<TYPE>::min;
    const Matrix &w = *p.w;
    const size_t row_bytes = static_cast<size_t>(w.row_bytes);
    if (p.tokens == 1) {
        const uint8_t *at = w.data + w.row_bytes * p.row0;
        for (uint32_t row = p.row0; row < p.row1; ++row, at += row_bytes) {
            if constexpr (Block<TYPE>::super) p.y[row] = row_super<TYPE>(at, p.x->q, p.x->d, p.x->s, w.cols / 32);
            else p.y[row] = row_blocks<TYPE>(at, p.x->q, p.x->d, p.x->s, w.cols / 32);
        }
        return;
    }
    constexpr uint32_t kPanel = 8, R = 2, T = 4;
    Panel panel = {static_cast<int8_t *>(p.scratch), nullptr, nullptr, w.cols, w.cols / 32};
    panel.scale = reinterpret_cast<float *>(panel.q + kPanel * panel.cols);
    panel.least = panel.scale + kPanel * panel.blocks;
    for (uint32_t row = p.row0; row < p.row1; row += kPanel) {
        const uint32_t rows = p.row1 - row < kPanel ? p.row1 - row : kPanel;
        const uint8_t *at = w.data + w.row_bytes * row;
        if constexpr (Block<TYPE>::super) unpack_super<TYPE>(panel, at, row_bytes, rows);
        else unpack<TYPE>(panel, at, row_bytes, rows);
        for (uint32_t t = 0; t < p.tokens;) {
            float *y = p.y + static_cast<size_t>(t) * p.ldy + row;
            const bool many = t + T <= p.tokens;
            for (uint32_t r = 0; r < rows;) {
                const bool some = r + R <= rows;
                if (many && some) tile_blocks<R, T, MIN>(panel, r, *p.x, t, y + r, p.ldy);
                else if (many) tile_blocks<1, T, MIN>(panel, r, *p.x, t, y + r, p.ldy);
                else if (some) tile_blocks<R, 1, MIN>(panel, r, *p.x, t, y + r, p.ldy);
                else tile_blocks<1, 1, MIN>(panel, r, *p.x, t, y + r, p.ldy);
                r += some ? R : 1;
            }
            t += many ? T : 1;
        }
    }
}

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

void quantize(const Activations *x, uint32_t t, uint32_t c0, uint32_t c1) {
    for (uint32_t c = c0; c < c1; c += 32) {
        const size_t at = static_cast<size_t>(t) * x->stride + c;
        const V16 low = load16(x->f + at), high = load16(x->f + at + 16);
        const V16 sizes = maximum(absolute(low), absolute(high));
        float largest = 0;
        for (int i = 0; i < 16; ++i) largest = sizes[i] > largest ? sizes[i] : largest;
        const float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
        // Adding 1.5 * 2^23 rounds to an integer, ties to even, which then stands in the low bits.
        const V16 round = splat(12582912.0f);
        const U16 a = as_bits(low * inverse + round), b = as_bits(high * inverse + round);
        int32_t sum = 0;
        for (int i = 0; i < 16; ++i) {
            const int8_t p = static_cast<int8_t>(a[i] & 255u), r = static_cast<int8_t>(b[i] & 255u);
            x->q[at + i] = p;
            x->q[at + 16 + i] = r;
            sum += p + r;
        }
        x->d[at / 32] = scale;
        x->s[at / 32] = scale * static_cast<float>(sum);
    }
}

}  // namespace
}  // namespace rwkvflow

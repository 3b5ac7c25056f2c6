// Products with quantized matrices in plain C++, for processors that none of the other kernels is for: kernels_tiles.h says what
// they come to, but that nothing is fused here. Rows are unpacked to bytes, and compilers make vector code of the sums.
#pragma once

namespace rwkvflow {
namespace {

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

// The weights of sub-block `sub` of a super-block.
template <int TYPE>
inline void unpack_sub(const uint8_t *at, uint32_t sub, int8_t out[32]) {
    using B = Block<TYPE>;
    const uint8_t *both = at + B::quants + sub / 2 * 32;
    for (int i = 0; i < 32; ++i) {
        int q = both[i] >> (sub % 2 * 4) & 15;
        if constexpr (B::five) q |= (at[B::high + i] >> sub & 1) << 4;
        out[i] = static_cast<int8_t>(q);
    }
}

// Rows as bytes, scales and minima: [rows][blocks][32], [rows][blocks] and [rows][blocks].
struct Panel {
    int8_t *q;
    float *scale, *least;
    size_t blocks;
};

template <int TYPE>
inline void unpack_row(const Panel &panel, size_t row, const uint8_t *at) {
    for (size_t b = row * panel.blocks; b < (row + 1) * panel.blocks; at += Block<TYPE>::bytes) {
        prefetch(at);
        if constexpr (Block<TYPE>::super) {
            super_scales(at, panel.scale + b, panel.least + b);
            for (uint32_t sub = 0; sub < 8; ++sub) unpack_sub<TYPE>(at, sub, panel.q + b++ * 32);
        } else {
            panel.scale[b] = half_scale(at);
            panel.least[b] = Block<TYPE>::min ? half_scale(at + 2) : 0.0f;
            unpack_block<TYPE>(at, panel.q + b++ * 32);
        }
    }
}

template <bool MIN>
inline float row_product(const Panel &panel, size_t row, const Activations &x, size_t token) {
    float sums[8] = {};
    for (size_t b = 0; b < panel.blocks; ++b) {
        const size_t own = row * panel.blocks + b, in = token * x.stride / 32 + b;
        const int8_t *w = panel.q + own * 32, *q = x.q + in * 32;
        int32_t whole = 0;
        for (int i = 0; i < 32; ++i) whole += w[i] * q[i];
        sums[b % 8] += static_cast<float>(whole) * (panel.scale[own] * x.d[in]);
        if constexpr (MIN) sums[b % 8] += panel.least[own] * x.s[in];
    }
    return ((sums[0] + sums[1]) + (sums[4] + sums[5])) + ((sums[2] + sums[3]) + (sums[6] + sums[7]));
}

template <int TYPE>
void matmul_type(const Product &p) {
    const Matrix &w = *p.w;
    Panel panel = {static_cast<int8_t *>(p.scratch), nullptr, nullptr, w.cols / 32};
    constexpr uint32_t kRows = 8;
    panel.scale = reinterpret_cast<float *>(panel.q + kRows * panel.blocks * 32);
    panel.least = panel.scale + kRows * panel.blocks;
    const uint8_t *at = w.data + w.row_bytes * p.row0;
    for (uint32_t row = p.row0; row < p.row1; row += kRows) {
        const uint32_t rows = p.row1 - row < kRows ? p.row1 - row : kRows;
        for (uint32_t r = 0; r < rows; ++r, at += w.row_bytes) unpack_row<TYPE>(panel, r, at);
        for (uint32_t t = 0; t < p.tokens; ++t)
            for (uint32_t r = 0; r < rows; ++r)
                p.y[static_cast<size_t>(t) * p.ldy + row + r] = row_product<Block<TYPE>::min>(panel, r, *p.x, t);
    }
}

void quantize(const Activations *x, uint32_t t, uint32_t, uint32_t c0, uint32_t c1) {
    for (uint32_t c = c0; c < c1; c += 32) {
        const size_t at = static_cast<size_t>(t) * x->stride + c;
        int32_t sum;
        quantize_block(x->f + at, x->q + at, &x->d[at / 32], &sum);
        x->s[at / 32] = x->d[at / 32] * static_cast<float>(sum);
    }
}

}  // namespace
}  // namespace rwkvflow

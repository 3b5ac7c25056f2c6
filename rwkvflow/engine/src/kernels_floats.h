// Products with F32 and F16 matrices. Element c of a row adds to lane c % 16 of one register, for any number of rows and tokens
// worked on together: so one token or many, one row or many give the same bits.
#pragma once

namespace rwkvflow {
namespace {

// The arguments of Kernels::matmul.
struct Product {
    const Matrix *w;
    const Activations *x;
    uint32_t tokens, row0, row1;
    float *y;
    uint32_t ldy;
    void *scratch;
};

template <bool HALF>
inline V16 load_weights(const uint8_t *at) {
    if constexpr (HALF) return load_half16(at);
    else return load16(at);
}

// The same for fewer than 16, with zeros behind them.
template <bool HALF>
inline V16 load_last_weights(const uint8_t *at, uint32_t count) {
    uint8_t rest[HALF ? 32 : 64] = {};
    memcpy(rest, at, count * (HALF ? size_t{2} : size_t{4}));
    return load_weights<HALF>(rest);
}

// A row against one token.
template <bool HALF>
inline float row_floats(const uint8_t *w, const float *x, uint32_t cols) {
    constexpr size_t size = HALF ? 2 : 4;
    V16 sum = {};
    uint32_t c = 0;
    for (; c + 16 <= cols; c += 16, w += 16 * size) {
        if (!HALF || c % 32 == 0) prefetch(w);
        sum = fused(load_weights<HALF>(w), load16(x + c), sum);
    }
    if (c < cols) sum = fused(load_last_weights<HALF>(w, cols - c), load16(x + c), sum);
    return sum_lanes16(sum);
}

// For many tokens: some rows are made floats, a part of the columns at a time, so that what is read again and again stays in
// the caches nearest; sums of the parts wait in `sums` [kScratchRows][tokens].
struct Part16 {
    const float *w;  // [rows][w_stride], columns of this part, in whole sixteens
    size_t w_stride;
    const float *x;  // [tokens][x_stride]
    size_t x_stride;
    uint32_t cols;
    bool first, last;
};

template <int R, int T>
inline void tile_floats(const Part16 &p, uint32_t row, uint32_t token, V16 *sums, float *y, size_t ldy) {
    V16 *const kept = sums + row * size_t{kMostTokens} + token;
    V16 tile[T][4] = {};
    if (!p.first)
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) tile[t][r] = kept[r * size_t{kMostTokens} + static_cast<size_t>(t)];
    const float *w = p.w + row * p.w_stride, *x = p.x + token * p.x_stride;
    for (uint32_t c = 0; c < p.cols; c += 16) {
        V16 in[T];
        for (int t = 0; t < T; ++t) in[t] = load16(x + static_cast<size_t>(t) * p.x_stride + c);
        for (int r = 0; r < R; ++r) {
            const V16 weights = load16(w + static_cast<size_t>(r) * p.w_stride + c);
            for (int t = 0; t < T; ++t) tile[t][r] = fused(weights, in[t], tile[t][r]);
        }
    }
    if (!p.last) {
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) kept[r * size_t{kMostTokens} + static_cast<size_t>(t)] = tile[t][r];
        return;
    }
    for (int t = 0; t < T; ++t) {
        float *to = y + (token + static_cast<size_t>(t)) * ldy + row;
        if constexpr (R == 1) {
            *to = sum_lanes16(tile[t][0]);
        } else {
            float out[4];
            sum4(tile[t], out);
            memcpy(to, out, R * sizeof(float));
        }
    }
}

template <bool HALF>
inline void floats_of(const uint8_t *from, uint32_t cols, float *to) {
    constexpr size_t size = HALF ? 2 : 4;
    uint32_t c = 0;
    for (; c + 16 <= cols; c += 16) {
        prefetch(from + c * size);
        const V16 values = load_weights<HALF>(from + c * size);
        memcpy(to + c, &values, sizeof values);
    }
    if (c < cols) {
        const V16 values = load_last_weights<HALF>(from + c * size, cols - c);
        memcpy(to + c, &values, sizeof values);
    }
}

inline void panel_floats(const Part16 &p, const Next &next, uint32_t rows, uint32_t tokens, V16 *sums, float *y, size_t ldy) {
    constexpr uint32_t R = RWKV_TILE_ROWS, T = RWKV_TILE_TOKENS;
    for (uint32_t t = 0; t < tokens;) {
        const bool many = t + T <= tokens;
        next.prefetch(t, many ? T : 1, tokens);
        for (uint32_t r = 0; r < rows;) {
            const bool some = r + R <= rows;
            if (many && some) tile_floats<R, T>(p, r, t, sums, y, ldy);
            else if (many) tile_floats<1, T>(p, r, t, sums, y, ldy);
            else if (some) tile_floats<R, 1>(p, r, t, sums, y, ldy);
            else tile_floats<1, 1>(p, r, t, sums, y, ldy);
            r += some ? R : 1;
        }
        t += many ? T : 1;
    }
}

template <bool HALF>
void matmul_floats(const Product &p) {
    constexpr uint32_t kPart = 1024;  // columns
    const Matrix &w = *p.w;
    const uint8_t *at = w.data + w.row_bytes * p.row0;
    if (p.tokens == 1) {
        for (uint32_t row = p.row0; row < p.row1; ++row, at += w.row_bytes) p.y[row] = row_floats<HALF>(at, p.x->f, w.cols);
        return;
    }
    V16 *const sums = static_cast<V16 *>(p.scratch);
    float *const panel = reinterpret_cast<float *>(sums + kScratchRows * size_t{kMostTokens});
    for (uint32_t row = p.row0; row < p.row1; row += kScratchRows) {
        const uint32_t rows = p.row1 - row < kScratchRows ? p.row1 - row : kScratchRows;
        for (uint32_t c = 0; c < w.cols; c += kPart) {
            const uint32_t cols = w.cols - c < kPart ? w.cols - c : kPart, padded = (cols + 15) / 16 * 16;
            at = w.data + w.row_bytes * row + c * (HALF ? size_t{2} : size_t{4});
            for (uint32_t r = 0; r < rows; ++r) floats_of<HALF>(at + w.row_bytes * r, cols, panel + r * size_t{padded});
            const Part16 part = {panel, padded, p.x->f + c, p.x->stride, padded, c == 0, c + cols == w.cols};
            // Where rows come in parts, the next ones are asked for with the last part.
            const uint32_t later = p.row1 - row - rows < kScratchRows ? p.row1 - row - rows : kScratchRows;
            const Next next = {w.data + w.row_bytes * (row + rows), c + cols == w.cols ? w.row_bytes * later : 0};
            panel_floats(part, next, rows, p.tokens, sums, p.y + row, p.ldy);
        }
    }
}

}  // namespace
}  // namespace rwkvflow

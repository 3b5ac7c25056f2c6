// Products of quantized matrices with many tokens, for instruction sets that have a dot product of bytes or something like it.
//
// What a row and a token come to is the same in all kernels, for one token or many: of every block of 32 weights the exact
// integer sum of products of bytes, made a float, times the product of both scales, is added to one of eight running sums, that
// of block b to number b % 8; of types with minima the minimum times the scaled sum of the inputs is added to the same after it.
// Products and additions are fused where the instruction set has it. At last: ((0 + 1) + (4 + 5)) + ((2 + 3) + (6 + 7)).
//
// For many tokens kLanes rows are worked on side by side, one in each lane, against kTile tokens: so nothing is added across
// lanes, and scales of rows are a register. Rows come packed, and tokens in tiles: words of four weights or inputs, in the order
// of word_of within a block.
//
// A file that includes this has defined kLanes, kTile, word_of, and the types Lanes (floats) and LaneInts, with fused(). It
// defines the four functions that are declared below.
#pragma once

namespace rwkvflow {
namespace {

// kLanes rows: q [blocks][8 * kLanes words], scale and least [blocks][kLanes].
struct Panel {
    uint8_t *q;
    float *scale, *least;
    size_t blocks;
};

// kTile tokens: q [blocks][8 * kTile words], d and s [blocks][kTile], n [blocks][3][kTile]; see kOffsets.
struct Tile {
    int8_t *q;
    float *d, *s;
    int32_t *n;
};
inline Tile tile_of(const Activations &x, uint32_t token) {
    const size_t first = token / kTile * kTile, blocks = x.stride / 32;
    return {x.q + first * x.stride, x.d + first * blocks, x.s + first * blocks, x.n + first * blocks * 3};
}

// Rows at `w` into the panel. Lanes beyond `rows` get any weights that are in the file.
template <int TYPE>
inline void pack(const Panel &panel, const uint8_t *w, size_t row_bytes, uint32_t rows);
// Integer sums of a packed block with T tokens of a tile.
template <int TYPE, int T>
inline void multiply(const uint8_t *w, const int8_t *q, const int32_t *n, LaneInts out[T]);
// A row with a single token, and a block of that token's inputs, in an order of its own: bytes, their scale, their sum, and
// both multiplied.
template <int TYPE>
inline float row_product(const uint8_t *w, uint32_t cols, const Activations &x);
inline void place_row(const Activations &x, uint32_t token, size_t block, const int8_t bytes[32], float d, int32_t sum, float s);

// Weights with an offset are multiplied as they stand, without a sign. The sum then starts from the offset times the negated sum of
// the inputs, which are kept for the three offsets there are: 8, 16 and 128 (of Q8_0, where bytes have to be made unsigned).
constexpr int start_of(int offset) { return offset == 8 ? 0 : offset == 16 ? 1 : 2; }
constexpr int32_t kOffsets[3] = {8, 16, 128};

// The same number in all lanes. (Adding it to zeros would make a zero's sign positive.)
inline Lanes all_lanes(float value) { return value - Lanes{}; }

// The order in which running sums are worked out, so that only few wait to be added.
constexpr uint32_t kSums[8] = {0, 1, 4, 5, 2, 3, 6, 7};

template <int TYPE, int T>
inline void tile_product(const Panel &panel, const Tile &in, float *y, size_t ldy, uint32_t rows, uint32_t tokens) {
    Lanes waiting[4][T];
    for (uint32_t i = 0; i < 8; ++i) {
        Lanes sums[T] = {};
        for (size_t b = kSums[i]; b < panel.blocks; b += 8) {
            LaneInts whole[T];
            multiply<TYPE, T>(panel.q + b * 32 * kLanes, in.q + b * 32 * kTile, in.n + b * 3 * kTile, whole);
            Lanes scale;
            memcpy(&scale, panel.scale + b * kLanes, sizeof scale);
            for (int t = 0; t < T; ++t)
                sums[t] = fused(__builtin_convertvector(whole[t], Lanes), scale * in.d[b * kTile + static_cast<size_t>(t)], sums[t]);
            if constexpr (Block<TYPE>::min) {
                Lanes least;
                memcpy(&least, panel.least + b * kLanes, sizeof least);
                for (int t = 0; t < T; ++t) sums[t] = fused(least, all_lanes(in.s[b * kTile + static_cast<size_t>(t)]), sums[t]);
            }
        }
        uint32_t level = 0;
        for (; (i >> level & 1) != 0; ++level)
            for (int t = 0; t < T; ++t) sums[t] = waiting[level][t] + sums[t];
        memcpy(waiting[level], sums, sizeof sums);
    }
    for (uint32_t t = 0; t < tokens; ++t) {
        float *to = y + t * ldy;
        if (rows == kLanes) memcpy(to, &waiting[3][t], sizeof(Lanes));
        else memcpy(to, &waiting[3][t], rows * sizeof(float));
    }
}

// As many tokens at once as there are left, or the next power of two: what is worked out for those that are not there is dropped.
template <int TYPE, int T>
inline void some_tokens(const Panel &panel, const Tile &in, float *y, size_t ldy, uint32_t rows, uint32_t tokens) {
    if constexpr (T > 1)
        if (tokens <= T / 2) return some_tokens<TYPE, T / 2>(panel, in, y, ldy, rows, tokens);
    tile_product<TYPE, T>(panel, in, y, ldy, rows, tokens);
}

template <int TYPE>
void matmul_type(const Product &p) {
    const Matrix &w = *p.w;
    const uint8_t *at = w.data + w.row_bytes * p.row0;
    if (p.tokens == 1) {
        for (uint32_t row = p.row0; row < p.row1; ++row, at += w.row_bytes) p.y[row] = row_product<TYPE>(at, w.cols, *p.x);
        return;
    }
    Panel panel = {static_cast<uint8_t *>(p.scratch), nullptr, nullptr, w.cols / 32};
    panel.scale = reinterpret_cast<float *>(panel.q + panel.blocks * 32 * kLanes);
    panel.least = panel.scale + panel.blocks * kLanes;
    for (uint32_t row = p.row0; row < p.row1; row += kLanes) {
        const uint32_t rest = p.row1 - row, rows = rest < kLanes ? rest : kLanes, later = rest - rows < kLanes ? rest - rows : kLanes;
        pack<TYPE>(panel, at, static_cast<size_t>(w.row_bytes), rows);
        at += w.row_bytes * rows;
        const Next next = {at, w.row_bytes * later};
        for (uint32_t t = 0; t < p.tokens; t += kTile) {
            const uint32_t left = p.tokens - t, some = left < kTile ? left : kTile;
            next.prefetch(t, some, p.tokens);
            some_tokens<TYPE, kTile>(panel, tile_of(*p.x, t), p.y + static_cast<size_t>(t) * p.ldy + row, p.ldy, rows, some);
        }
    }
}

// A block of inputs where a tile has them.
inline void place_in_tile(const Activations &x, uint32_t token, size_t block, const int8_t bytes[32], float d, int32_t sum, float s) {
    const Tile tile = tile_of(x, token);
    const size_t own = token % kTile;
    for (size_t j = 0; j < 8; ++j) memcpy(tile.q + (block * 8 * kTile + word_of(j, own, kTile)) * 4, bytes + 4 * j, 4);
    tile.d[block * kTile + own] = d;
    tile.s[block * kTile + own] = s;
    for (size_t i = 0; i < 3; ++i) tile.n[(block * 3 + i) * kTile + own] = -sum * kOffsets[i];
}

inline void place(const Activations &x, uint32_t token, uint32_t tokens, size_t block, const int8_t bytes[32], float d, int32_t sum) {
    const float s = d * static_cast<float>(sum);
    if (tokens == 1) place_row(x, token, block, bytes, d, sum, s);
    else place_in_tile(x, token, block, bytes, d, sum, s);
}

}  // namespace
}  // namespace rwkvflow

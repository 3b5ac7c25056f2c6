// Products of quantized matrices with many tokens in AMX's tiles of signed bytes (Sapphire Rapids and later), with the
// vector instructions of avx512.cc around them. Bits are those of all other kernels (kernels/common/tiles.inc): a block
// of 32 weights is half as deep as a tile can be, and its sum is an exact integer; scales and the order of sums are as
// there.
//
// A packed block of 16 rows is a tile as it stands: 8 words of four weights of each row. 8 tokens are the other one, of
// 32 bytes each. So a row of the product is a token, with a lane for each row of the matrix. Two panels of rows are
// worked on with the same tokens, whose bytes and scales are then loaded once for both.
//
// A block of 32 rows and 8 tokens is 16 cycles of the tile unit, and 24 of the vector units, which make 16 registers of
// sums floats with their scales (a product of scales is that of one row, one token and one block: nothing of it can be
// had beforehand). So tiles of the next block are multiplied while those of this one are scaled, in two sets that take
// turns.
#if defined(__x86_64__) || defined(_M_X64)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header, of registers that are undefined on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "kernels/x86/amx.h"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/common/math.h"
#include "kernels/common/types.h"
#include "kernels/x86/amx_tiles.h"
#include "kernels/x86/half.h"

#define RWKV_OWN_PRODUCTS
#define RWKV_SIGNED_PANELS
#define RWKV_HAS_QUANTIZE
#define RWKV_HAS_SIX

namespace rwkvflow {
namespace {

enum : uint32_t { kLanes = 16, kTile = 8, kStarts = 0, kPanels = 2, kWide = 1, kSigned = 1 };
typedef V16 Lanes;
typedef int32_t LaneInts __attribute__((vector_size(64)));

// Word j of a block of token `own`: a token's stand together.
constexpr size_t word_of(size_t j, size_t own, size_t) { return own * 8 + j; }

inline Lanes fused(Lanes a, Lanes b, Lanes c) {
    return reinterpret_cast<Lanes>(
        _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}

}  // namespace
}  // namespace rwkvflow

// clang-format off: in this order
#include "kernels/common/product.inc"
#include "kernels/common/quantized.inc"
#include "kernels/common/tiles.inc"

namespace rwkvflow {
namespace {
inline void place(const Activations &x, uint32_t token, uint32_t, size_t block, const int8_t bytes[32], float d,
                  const int32_t sums[2]) {
    place_in_tile(x, token, block, bytes, d, sums, d * static_cast<float>(sums[0] + sums[1]));
}
}  // namespace
}  // namespace rwkvflow

#include "kernels/x86/blocks.inc"
// clang-format on

namespace rwkvflow {
namespace {

// Halves of a block of Q6_K have factors of their own, and so a product each.
template <int TYPE>
constexpr uint32_t kHalves = Packed<TYPE>::six ? 2 : 1;

// Each of the two sets: sums of two products, tokens, rows. The products are those of two panels or, of Q6_K, of the
// halves of a block, a panel after the other.
enum : int { kSumTile, kOtherSumTile, kTokenTile, kRowTile, kSetTiles };

template <int TYPE>
constexpr TileShapes shapes() {
    TileShapes out = {};
    out.palette = 1;
    for (int set = 0; set < 2; ++set) {
        out.set(set * kSetTiles + kSumTile, kTile, 4 * kLanes);
        out.set(set * kSetTiles + kOtherSumTile, kTile, 4 * kLanes);
        out.set(set * kSetTiles + kTokenTile, kTile, 32 / kHalves<TYPE>);
        out.set(set * kSetTiles + kRowTile, 8 / kHalves<TYPE>, 4 * kLanes);
    }
    return out;
}
template <int TYPE>
constexpr TileShapes kShapes = shapes<TYPE>();

// Of a block.
template <int TYPE>
struct BlockSums {
    alignas(64) int32_t at[kPanels][kHalves<TYPE>][kTile][kLanes];

    Lanes of(uint32_t panel, uint32_t half, int token) const {
        LaneInts out;
        memcpy(&out, at[panel][half][token], sizeof out);
        return __builtin_convertvector(out, Lanes);
    }
};

template <int TYPE, int SET>
inline void multiply_block(const Panel panels[kPanels], const Tile &in, size_t b, BlockSums<TYPE> *to) {
    constexpr int kFirst = SET * kSetTiles;
    const int8_t *tokens = in.q + b * 32 * kTile;
    const uint8_t *rows = panels[0].q + b * 32 * kLanes, *others = panels[1].q + b * 32 * kLanes;
    constexpr int kSum = kFirst + kSumTile, kOther = kFirst + kOtherSumTile, kToken = kFirst + kTokenTile,
                  kRow = kFirst + kRowTile;
    if constexpr (Packed<TYPE>::six) {
        for (uint32_t panel = 0; panel < kPanels; ++panel, rows = others) {
            tile_load<kToken>(tokens, 32);
            tile_load<kRow>(rows, 4 * kLanes);
            tile_zero<kSum>();
            tile_multiply<kSum, kToken, kRow>();
            tile_load<kToken>(tokens + 16, 32);
            tile_load<kRow>(rows + 16 * kLanes, 4 * kLanes);
            tile_zero<kOther>();
            tile_multiply<kOther, kToken, kRow>();
            tile_store<kSum>(to->at[panel][0], 4 * kLanes);
            tile_store<kOther>(to->at[panel][1], 4 * kLanes);
        }
    } else {
        tile_load<kToken>(tokens, 32);
        tile_load<kRow>(rows, 4 * kLanes);
        tile_zero<kSum>();
        tile_multiply<kSum, kToken, kRow>();
        tile_load<kRow>(others, 4 * kLanes);
        tile_zero<kOther>();
        tile_multiply<kOther, kToken, kRow>();
        tile_store<kSum>(to->at[0][0], 4 * kLanes);
        tile_store<kOther>(to->at[1][0], 4 * kLanes);
    }
}

constexpr int kSumCount = kPanels * kTile;

// Adds block b to the running sums, [panels][tokens].
template <int TYPE>
inline void add_block(const BlockSums<TYPE> &whole, const Panel panels[kPanels], const Tile &in, size_t b,
                      Lanes sums[kSumCount]) {
    Lanes scale[kPanels], least[kPanels], factors[kPanels][2];
    for (uint32_t p = 0; p < kPanels; ++p) {
        memcpy(&scale[p], panels[p].scale + b * kLanes, sizeof scale[p]);
        if constexpr (Packed<TYPE>::min) memcpy(&least[p], panels[p].least + b * kLanes, sizeof least[p]);
        if constexpr (Packed<TYPE>::six) memcpy(factors[p], panels[p].least + b * 2 * kLanes, sizeof factors[p]);
    }
    for (int t = 0; t < static_cast<int>(kTile); ++t) {
        const Lanes d = all_lanes(in.d[b * kTile + static_cast<size_t>(t)]);
        for (uint32_t p = 0; p < kPanels; ++p) {
            Lanes &sum = sums[p * kTile + static_cast<uint32_t>(t)];
            Lanes all = whole.of(p, 0, t);
            if constexpr (Packed<TYPE>::six)  // exact, as in tiles.inc
                all = fused(whole.of(p, 1, t), factors[p][1], fused(all, factors[p][0], Lanes{}));
            sum = fused(all, scale[p] * d, sum);
            if constexpr (Packed<TYPE>::min)
                sum = fused(least[p], all_lanes(in.s[b * kTile + static_cast<size_t>(t)]), sum);
        }
    }
}

// What is worked out for tokens that are not there is dropped.
template <int TYPE>
RWKV_ONCE void tile_product(const Panel panels[kPanels], const Tile &in, float *y, size_t ldy, uint32_t rows,
                            uint32_t tokens) {
    const size_t blocks = panels[0].blocks;
    BlockSums<TYPE> even, odd;  // of the two sets of tiles
    Lanes waiting[4][kSumCount];
    multiply_block<TYPE, 0>(panels, in, kSums[0], &even);
    for (uint32_t i = 0; i < 8; ++i) {
        Lanes sums[kSumCount] = {};
        size_t b = kSums[i], then = b;  // the first block of the next running sum that has any; at the end any will do
        for (uint32_t j = 8; j-- > i + 1;)
            if (kSums[j] < blocks) then = kSums[j];
        for (; b + 8 < blocks; b += 16) {
            multiply_block<TYPE, 1>(panels, in, b + 8, &odd);
            add_block<TYPE>(even, panels, in, b, sums);
            multiply_block<TYPE, 0>(panels, in, b + 16 < blocks ? b + 16 : then, &even);
            add_block<TYPE>(odd, panels, in, b + 8, sums);
        }
        if (b < blocks) {
            add_block<TYPE>(even, panels, in, b, sums);
            multiply_block<TYPE, 0>(panels, in, then, &even);
        }
        add_to_waiting<kSumCount>(waiting, i, sums);
    }
    const uint32_t first = rows < kLanes ? rows : kLanes;
    write_out(waiting[3], y, ldy, first, tokens);
    write_out(waiting[3] + kTile, y + first, ldy, rows - first, tokens);
}

template <int TYPE>
void matmul_type(const Product &p) {
    constexpr uint32_t kRows = kPanels * kLanes;
    const Matrix &w = *p.w;
    Panel panels[kPanels];
    panels_in<TYPE>(p.scratch, w.cols / 32, panels);
    const uint8_t *at = w.data + w.row_bytes * p.row0;
    tiles_begin(kShapes<TYPE>);
    for (uint32_t row = p.row0; row < p.row1; row += kRows) {
        const uint32_t rest = p.row1 - row, rows = rest < kRows ? rest : kRows,
                       later = rest - rows < kRows ? rest - rows : kRows;
        pack_panels<TYPE>(panels, at, static_cast<size_t>(w.row_bytes), rows);
        at += w.row_bytes * rows;
        const Next next = {at, w.row_bytes, w.row_bytes, later};
        for (uint32_t t = 0; t < p.tokens; t += kTile) {
            const uint32_t left = p.tokens - t, some = left < kTile ? left : uint32_t{kTile};
            next.prefetch(t, some, p.tokens);
            tile_product<TYPE>(panels, tile_of(*p.x, t), p.y + static_cast<size_t>(t) * p.ldy + row, p.ldy, rows, some);
        }
    }
    tiles_end();  // or the system has more to save, and the processor keeps the unit awake
}

bool has_tiles(int32_t type) {
    switch (type) {
        case kQ4_0:
        case kQ4_1:
        case kQ5_0:
        case kQ5_1:
        case kQ8_0:
        case kQ4_K:
        case kQ5_K:
        case kQ6_K: return true;
        default: return false;
    }
}

}  // namespace

#if defined(RWKV_AMX_MODEL)
#define RWKV_AMX(name) amx_model_##name
uint64_t amx_model_multiplied() { return model_tiles.multiplied; }
#else
#define RWKV_AMX(name) amx_##name
uint64_t amx_most_products(Products kind, uint32_t rounds) {
    if (kind == kFloats) return kKernelsAvx512.most_products(kind, rounds);
    static constexpr TileShapes kFull = [] {
        TileShapes out = {};
        out.palette = 1;
        for (int tile = 0; tile < 8; ++tile) out.set(tile, 16, 64);
        return out;
    }();
    tiles_begin(kFull);
    for (uint32_t round = 0; round < rounds; ++round) {
        tile_multiply<0, 6, 7>();
        tile_multiply<1, 6, 7>();
        tile_multiply<2, 6, 7>();
        tile_multiply<3, 6, 7>();
        tile_multiply<4, 6, 7>();
        tile_multiply<5, 6, 7>();
    }
    tiles_end();
    return uint64_t{rounds} * 6 * 16 * 16 * 64;
}
#endif

void RWKV_AMX(matmul)(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y,
                      uint32_t ldy, void *scratch) {
    const bool floats = w->type == kF32 || w->type == kF16 || w->type == kBF16;
    if (tokens <= kFew || floats) return kKernelsAvx512.matmul(w, x, tokens, row0, row1, y, ldy, scratch);
    if (has_tiles(w->type)) return matmul_quantized({w, x, tokens, row0, row1, y, ldy, scratch});
    // Of many tokens the others would read what AVX-512's own quantize makes; few they make bytes of themselves.
    for (uint32_t t = 0; t < tokens; t += kFew) {
        Activations some = *x;
        some.f += static_cast<size_t>(t) * x->stride;
        kKernelsAvx512.matmul(w, &some, tokens - t < kFew ? tokens - t : kFew, row0, row1,
                              y + static_cast<size_t>(t) * ldy, ldy, scratch);
    }
}

void RWKV_AMX(quantize)(const Activations *x, uint32_t t0, uint32_t t1, uint32_t tokens, uint32_t c0, uint32_t c1) {
    if (tokens <= kFew) kKernelsAvx512.quantize(x, t0, t1, tokens, c0, c1);
    else quantize(x, t0, t1, tokens, c0, c1);
}

}  // namespace rwkvflow
#endif

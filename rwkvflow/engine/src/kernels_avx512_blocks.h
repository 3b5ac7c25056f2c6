// Products with quantized matrices in 512-bit registers with VNNI, for kernels_avx512.cc.
//
// Four blocks, 128 weights, are a group: one register of unsigned bytes holds the weights 0 .. 15 of each block, one the weights
// 16 .. 31, one the scales. Two dot product instructions give four lanes of exact sums a block; their floats, scaled, add
// to one register a row and token. Inputs are kept in the same order (see quantize below), with their negated lane
// sums, from which sums start: that takes off the offset of the weights, exactly (8, 16, or 128 for Q8_0, whose signed
// bytes are made unsigned). Minima are multiplied with the lanes' sums of inputs and add to the same register.
//
// What is missing in the last group of a row has a scale of 0.
#pragma once

namespace rwkvflow {
namespace {

enum : uint32_t { kGroup = 128 };

template <int TYPE>
struct Layout {
    static constexpr int bytes = 4 * Block<TYPE>::bytes;
    // Words are taken from the 64 bytes at the start and, where `second` is not 0, the 64 at `second`.
    static constexpr int second = TYPE == kQ8_0 ? 64 : Block<TYPE>::five ? bytes - 64 : 0;
    static constexpr int shift = TYPE == kQ8_0 ? 7 : Block<TYPE>::min ? 32 : TYPE == kQ5_0 ? 4 : 3;  // offset as a shift; 32: none

    struct alignas(64) Index {
        uint16_t at[32];
    };
    static constexpr uint16_t word(int offset) {
        return static_cast<uint16_t>(offset < 64 ? offset / 2 : 32 + (offset - second) / 2);
    }
    // Scales, each four times, then minima, each four times.
    static constexpr Index scales() {
        Index out = {};
        for (int i = 0; i < 16; ++i) {
            out.at[i] = word(i / 4 * Block<TYPE>::bytes);
            out.at[16 + i] = word(i / 4 * Block<TYPE>::bytes + (Block<TYPE>::min ? 2 : 0));
        }
        return out;
    }
    // Fifth bits: of the low halves of the four blocks, then of the high halves.
    static constexpr Index bits() {
        Index out = {};
        for (int i = 0; i < 32; ++i) out.at[i] = word(i % 4 * Block<TYPE>::bytes + Block<TYPE>::high + i / 4 % 2 * 2);
        return out;
    }
    static constexpr Index kScales = scales(), kBits = bits();
};

template <bool MIN>
struct Group;
template <>
struct Group<false> {
    __m512i low, high;
    __m512 scale;
};
template <>
struct Group<true> {
    __m512i low, high;
    __m512 scale, least;
};

// 16 bytes at `at` of each of four blocks.
template <int BYTES>
inline __m512i four_pieces(const uint8_t *at) {
    const auto piece = [=](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(at + i * BYTES)); };
    const __m256i front = _mm256_inserti128_si256(_mm256_castsi128_si256(piece(0)), piece(1), 1);
    const __m256i back = _mm256_inserti128_si256(_mm256_castsi128_si256(piece(2)), piece(3), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(front), back, 1);
}

template <int TYPE>
inline Group<Block<TYPE>::min> load_group(const uint8_t *at) {
    using B = Block<TYPE>;
    using L = Layout<TYPE>;
    Group<B::min> g;
    const __m512i start = _mm512_loadu_si512(at);
    __m512i second = start;
    if constexpr (L::second != 0) second = _mm512_loadu_si512(at + L::second);
    // Or Clang takes the pieces below out of these registers, with many more instructions than loads.
    __asm__("" : "+r"(at));
    const auto words = [=](const typename L::Index &index) {
        const __m512i wanted = _mm512_load_si512(&index);
        if constexpr (L::second == 0) return _mm512_permutexvar_epi16(wanted, start);
        else return _mm512_permutex2var_epi16(start, wanted, second);
    };
    const __m512i scales = words(L::kScales);
    g.scale = _mm512_cvtph_ps(_mm512_castsi512_si256(scales));
    if constexpr (B::min) g.least = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(scales, 1));
    if constexpr (TYPE == kQ8_0) {
        const __m512i flip = _mm512_set1_epi8(-128);
        g.low = _mm512_xor_si512(four_pieces<B::bytes>(at + 2), flip);
        g.high = _mm512_xor_si512(four_pieces<B::bytes>(at + 18), flip);
    } else {
        const __m512i both = four_pieces<B::bytes>(at + B::quants), nibble = _mm512_set1_epi8(15);
        g.low = _mm512_and_si512(both, nibble);
        g.high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        if constexpr (B::five) {
            const __m128i bits = _mm512_castsi512_si128(words(L::kBits));
            const __m512i sixteen = _mm512_set1_epi8(16);
            const __mmask64 low = static_cast<__mmask64>(_mm_cvtsi128_si64(bits));
            const __mmask64 high = static_cast<__mmask64>(_mm_extract_epi64(bits, 1));
            g.low = _mm512_mask_add_epi8(g.low, low, g.low, sixteen);
            g.high = _mm512_mask_add_epi8(g.high, high, g.high, sixteen);
        }
    }
    return g;
}

// The first `blocks` of a group, which end the row.
template <int TYPE>
inline Group<Block<TYPE>::min> load_last_group(const uint8_t *at, uint32_t blocks) {
    uint8_t padded[Layout<TYPE>::bytes] = {};
    memcpy(padded, at, blocks * size_t{Block<TYPE>::bytes});
    return load_group<TYPE>(padded);
}

// A group of inputs, ready for any row.
struct Input {
    __m512i low, high, start;
    __m512 scale, sums;
};

template <bool MIN>
inline Input load_input(const Activations &x, size_t token, size_t group, __m128i shift) {
    Input in;
    const size_t at = token * x.stride + group * kGroup;
    in.low = _mm512_loadu_si512(x.q + at);
    in.high = _mm512_loadu_si512(x.q + at + 64);
    const __m512i each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    in.scale = _mm512_permutexvar_ps(each, _mm512_castps128_ps512(_mm_loadu_ps(x.d + at / 32)));
    const __m512i negated = _mm512_loadu_si512(x.n + at / 8);
    if constexpr (MIN) {
        in.start = _mm512_setzero_si512();
        in.sums = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(in.start, negated)), in.scale);
    } else {
        in.start = _mm512_sll_epi32(negated, shift);
    }
    return in;
}

template <bool MIN>
inline __m512 add_group(__m512 sum, const Group<MIN> &w, const Input &x) {
    const __m512i whole = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x.start, w.low, x.low), w.high, x.high);
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(w.scale, x.scale), sum);
    if constexpr (MIN) sum = _mm512_fmadd_ps(w.least, x.sums, sum);
    return sum;
}

inline void store_sums(const __m512 sums[4], float *y, uint32_t rows) {
    V16 all[4];
    memcpy(all, sums, sizeof all);
    float out[4];
    sum4(all, out);
    _mm_mask_storeu_ps(y, static_cast<__mmask8>((1u << rows) - 1), _mm_loadu_ps(out));
}

// A row against one token.
template <int TYPE>
inline float row_blocks(const uint8_t *w, uint32_t cols, const Activations &x) {
    constexpr bool MIN = Block<TYPE>::min;
    const __m128i shift = _mm_cvtsi32_si128(Layout<TYPE>::shift);
    __m512 sum = _mm512_setzero_ps();
    const uint32_t groups = cols / kGroup, rest = cols % kGroup / 32;
    for (uint32_t g = 0; g < groups; ++g, w += Layout<TYPE>::bytes) {
        prefetch(w);
        prefetch(w + 64);
        if constexpr (Layout<TYPE>::bytes > 128) prefetch(w + 128);
        sum = add_group<MIN>(sum, load_group<TYPE>(w), load_input<MIN>(x, 0, g, shift));
    }
    if (rest != 0) sum = add_group<MIN>(sum, load_last_group<TYPE>(w, rest), load_input<MIN>(x, 0, groups, shift));
    return sum_lanes16(reinterpret_cast<V16>(sum));
}

// Four rows of groups against T tokens.
template <int T, bool MIN>
inline void tile_blocks(const Group<MIN> *w, size_t groups, const Activations &x, uint32_t token, __m128i shift, float *y,
                        size_t ldy, uint32_t rows) {
    __m512 sums[T][4];
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < 4; ++r) sums[t][r] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; ++g) {
        const Group<MIN> four[4] = {w[g], w[groups + g], w[2 * groups + g], w[3 * groups + g]};
        for (int t = 0; t < T; ++t) {
            const Input in = load_input<MIN>(x, token + static_cast<size_t>(t), g, shift);
            for (int r = 0; r < 4; ++r) sums[t][r] = add_group<MIN>(sums[t][r], four[r], in);
        }
    }
    for (int t = 0; t < T; ++t) store_sums(sums[t], y + static_cast<size_t>(t) * ldy, rows);
}

template <int TYPE>
void matmul_type(const Product &p) {
    constexpr bool MIN = Block<TYPE>::min;
    const Matrix &w = *p.w;
    if (p.tokens == 1) {
        const uint8_t *at = w.data + w.row_bytes * p.row0;
        for (uint32_t row = p.row0; row < p.row1; ++row, at += w.row_bytes) p.y[row] = row_blocks<TYPE>(at, w.cols, *p.x);
        return;
    }
    constexpr uint32_t kPanel = kScratchRows;
    const __m128i shift = _mm_cvtsi32_si128(Layout<TYPE>::shift);
    Group<MIN> *const panel = static_cast<Group<MIN> *>(p.scratch);
    const uint32_t whole = w.cols / kGroup, rest = w.cols % kGroup / 32;
    const size_t groups = whole + (rest != 0 ? size_t{1} : size_t{0});
    for (uint32_t row = p.row0; row < p.row1; row += kPanel) {
        const uint32_t rows = p.row1 - row < kPanel ? p.row1 - row : kPanel;
        for (uint32_t r = 0; r < rows; ++r) {
            const uint8_t *at = w.data + w.row_bytes * (row + r);
            Group<MIN> *to = panel + r * groups;
            for (uint32_t g = 0; g < whole; ++g, at += Layout<TYPE>::bytes) {
                prefetch(at);
                prefetch(at + 64);
                *to++ = load_group<TYPE>(at);
            }
            if (rest != 0) *to = load_last_group<TYPE>(at, rest);
        }
        const Next next = {w.data + w.row_bytes * (row + rows), w.row_bytes * (p.row1 - row - rows < kPanel ? p.row1 - row - rows : kPanel)};
        for (uint32_t t = 0; t < p.tokens;) {
            const uint32_t left = p.tokens - t;
            next.prefetch(t, left >= 4 ? 4 : left, p.tokens);
            for (uint32_t r = 0; r < rows; r += 4) {  // rows that are not there are worked out from what was, and dropped
                const Group<MIN> *from = panel + r * groups;
                float *y = p.y + static_cast<size_t>(t) * p.ldy + row + r;
                const uint32_t some = rows - r < 4 ? rows - r : 4;
                if (left >= 4) tile_blocks<4, MIN>(from, groups, *p.x, t, shift, y, p.ldy, some);
                else if (left >= 2) tile_blocks<2, MIN>(from, groups, *p.x, t, shift, y, p.ldy, some);
                else tile_blocks<1, MIN>(from, groups, *p.x, t, shift, y, p.ldy, some);
            }
            t += left >= 4 ? 4 : left >= 2 ? 2 : 1;
        }
    }
}

}  // namespace
}  // namespace rwkvflow

#include "kernels_avx512_super.h"

namespace rwkvflow {
namespace {

void matmul_quantized(const Product &p) {
    switch (p.w->type) {
        case kQ4_0: return matmul_type<kQ4_0>(p);
        case kQ4_1: return matmul_type<kQ4_1>(p);
        case kQ5_0: return matmul_type<kQ5_0>(p);
        case kQ5_1: return matmul_type<kQ5_1>(p);
        case kQ8_0: return matmul_type<kQ8_0>(p);
        case kQ4_K: return matmul_super<kQ4_K>(p);
        case kQ5_K: return matmul_super<kQ5_K>(p);
        default: return;
    }
}

// Block b of a token stands at group b / 4: its first half at 16 * (b % 4), its second half 64 bytes after.
void quantize(const Activations *x, uint32_t t, uint32_t c0, uint32_t c1) {
    for (uint32_t c = c0; c < c1; c += 32) {
        const size_t at = static_cast<size_t>(t) * x->stride + c, block = at / 32;
        const __m512 low = _mm512_loadu_ps(x->f + at), high = _mm512_loadu_ps(x->f + at + 16);
        const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        const __m512 factor = _mm512_set1_ps(inverse);
        const __m128i a = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, factor)));
        const __m128i b = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, factor)));
        int8_t *q = x->q + (at - c % kGroup) + c % kGroup / 2;
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q), a);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + 64), b);
        const __m128i zero = _mm_setzero_si128(), ones = _mm_set1_epi8(1);
        const __m128i sums = _mm_dpbusd_epi32(_mm_dpbusd_epi32(zero, ones, a), ones, b);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(x->n + 4 * block), _mm_sub_epi32(zero, sums));
        const __m128i pairs = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
        const __m128i total = _mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1));
        x->d[block] = largest / 127.0f;
        x->s[block] = x->d[block] * static_cast<float>(_mm_cvtsi128_si32(total));
    }
}

}  // namespace
}  // namespace rwkvflow

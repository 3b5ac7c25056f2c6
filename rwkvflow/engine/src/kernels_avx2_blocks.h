// Products with quantized matrices in 256-bit registers, for kernels_avx2.cc and kernels_avxvnni.cc.
//
// As in kernels_avx512_blocks.h, but two blocks at a time: a pair is one register of the weights 0 .. 15 of either block and
// one of the weights 16 .. 31, and comes to four lanes of exact sums a block, which add, scaled, to one register a row and
// token. Four blocks, 128 weights, are a group: their scales are made floats together, and so are their minima, which are
// multiplied with the sums of 32 inputs. Inputs are kept in the same order (see quantize below), with their lane sums times
// -8, from which the sums of the types with an offset start.
//
// What is missing in the last group of a row has a scale of 0.
#pragma once

namespace rwkvflow {
namespace {

enum : uint32_t { kGroup = 128 };

// 16 bytes at `at` and 16 at `at + step`.
inline __m256i two_pieces(const uint8_t *at, size_t step) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at + step));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

struct Pair {
    __m256i low, high;
};

// Weights as unsigned bytes, with their offset; of Q8_0 as signed ones, or with AVX-VNNI unsigned and 128 too large.
template <int TYPE>
inline Pair load_pair(const uint8_t *at) {
    using B = Block<TYPE>;
    if constexpr (TYPE == kQ8_0) {
        const Pair w = {two_pieces(at + 2, B::bytes), two_pieces(at + 18, B::bytes)};
#if defined(RWKV_AVX_VNNI)
        const __m256i flip = _mm256_set1_epi8(-128);
        return {_mm256_xor_si256(w.low, flip), _mm256_xor_si256(w.high, flip)};
#else
        return w;
#endif
    }
    const __m256i both = two_pieces(at + B::quants, B::bytes), nibble = _mm256_set1_epi8(15);
    Pair out = {_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)};
    if constexpr (B::five) {
        // Every byte gets the byte with its fifth bit; then its own bit of it decides.
        const __m256i bits = two_pieces(at + B::high, B::bytes), sixteen = _mm256_set1_epi8(16);
        const __m256i own = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const auto fifth = [=](long long first) {
            const long long one = 0x0101010101010101;
            const __m256i spread = _mm256_set_epi64x((first + 1) * one, first * one, (first + 1) * one, first * one);
            const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, spread), own), own);
            return _mm256_and_si256(set, sixteen);
        };
        out.low = _mm256_or_si256(out.low, fifth(0));
        out.high = _mm256_or_si256(out.high, fifth(2));
    }
    return out;
}

// Four halves, BYTES apart.
template <int BYTES>
inline __m128 four_halves(const uint8_t *at) {
    uint16_t half[4];
    for (int i = 0; i < 4; ++i) memcpy(&half[i], at + i * BYTES, 2);
    __m128i all = _mm_cvtsi32_si128(half[0]);
    all = _mm_insert_epi16(all, half[1], 1);
    all = _mm_insert_epi16(all, half[2], 2);
    return _mm_cvtph_ps(_mm_insert_epi16(all, half[3], 3));
}

// Two of four numbers, each four times.
inline __m256 four_times(__m128 of, int pair) {
    const __m256i first = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0), second = _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(of), pair == 0 ? first : second);
}

// Lane sums of a pair of weights and inputs. `start`: of the inputs, times -8.
template <int TYPE>
inline __m256i pair_sums(const Pair &w, const Pair &x, __m256i start) {
    constexpr bool five = Block<TYPE>::offset == 16, min = Block<TYPE>::min;
#if defined(RWKV_AVX_VNNI)
    __m256i sum = _mm256_setzero_si256();
    if constexpr (TYPE == kQ8_0) sum = _mm256_slli_epi32(start, 4);
    else if constexpr (!min) sum = five ? _mm256_add_epi32(start, start) : start;
    return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, w.low, x.low), w.high, x.high);
#else
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (TYPE == kQ8_0) {
        // Two products fit 16 bits, at most 2 * 128 * 127; four do not.
        const __m256i low = _mm256_maddubs_epi16(_mm256_abs_epi8(w.low), _mm256_sign_epi8(x.low, w.low));
        const __m256i high = _mm256_maddubs_epi16(_mm256_abs_epi8(w.high), _mm256_sign_epi8(x.high, w.high));
        return _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
    }
    // At most 4 * 31 * 127.
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.low, x.low), _mm256_maddubs_epi16(w.high, x.high));
    __m256i sum = _mm256_madd_epi16(pairs, ones);
    if constexpr (!min) sum = _mm256_add_epi32(sum, five ? _mm256_add_epi32(start, start) : start);
    return sum;
#endif
}

inline __m256i load_bytes(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }
inline Pair load_inputs(const int8_t *q, int pair) { return {load_bytes(q + 64 * pair), load_bytes(q + 64 * pair + 32)}; }

template <int TYPE>
inline __m256 add_pair(__m256 sum, const Pair &w, const Pair &x, const int32_t *n, __m256 scale) {
    const __m256i whole = pair_sums<TYPE>(w, x, load_bytes(n));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sum);
}
// Minima of four blocks add to the first four lanes.
inline __m256 add_minima(__m256 sum, __m128 least, __m128 sums) {
    return _mm256_fmadd_ps(_mm256_zextps128_ps256(least), _mm256_zextps128_ps256(sums), sum);
}
// Those of eight, a super-block, are taken off all lanes.
inline __m256 take_minima(__m256 sum, __m256 least, __m256 sums) { return _mm256_fnmadd_ps(least, sums, sum); }
inline float lane_sum(__m256 v) { return sum_lanes8(reinterpret_cast<V8>(v)); }

template <int TYPE>
inline __m256 add_blocks(__m256 sum, const uint8_t *w, const Activations &x, size_t c) {
    using B = Block<TYPE>;
    const __m128 scales = _mm_mul_ps(four_halves<B::bytes>(w), _mm_loadu_ps(x.d + c / 32));
    for (int p = 0; p < 2; ++p)
        sum = add_pair<TYPE>(sum, load_pair<TYPE>(w + 2 * p * B::bytes), load_inputs(x.q + c, p), x.n + c / 8 + 8 * p,
                             four_times(scales, p));
    if constexpr (B::min) sum = add_minima(sum, four_halves<B::bytes>(w + 2), _mm_loadu_ps(x.s + c / 32));
    return sum;
}

// A row against one token.
template <int TYPE>
inline float row_blocks(const uint8_t *w, uint32_t cols, const Activations &x) {
    constexpr size_t bytes = size_t{4} * Block<TYPE>::bytes;
    __m256 sum = _mm256_setzero_ps();
    size_t c = 0;
    for (; c + kGroup <= cols; c += kGroup, w += bytes) {
        prefetch(w);
        prefetch(w + 64);
        if constexpr (bytes > 128) prefetch(w + 128);
        sum = add_blocks<TYPE>(sum, w, x, c);
    }
    if (c < cols) {
        uint8_t padded[bytes] = {};
        memcpy(padded, w, (cols - c) / 32 * size_t{Block<TYPE>::bytes});
        sum = add_blocks<TYPE>(sum, padded, x, c);
    }
    return lane_sum(sum);
}

// Four blocks of a row, ready for any token.
struct Group {
    Pair pairs[2];
    __m256 scale[2];
};
struct Panel {
    Group *groups;  // [rows][count]
    float *least;   // [rows][count][4]
    size_t count;
};

template <int TYPE>
inline void unpack(const Panel &panel, size_t to, const uint8_t *at) {
    using B = Block<TYPE>;
    const __m128 scales = four_halves<B::bytes>(at);
    for (int p = 0; p < 2; ++p) {
        panel.groups[to].pairs[p] = load_pair<TYPE>(at + 2 * p * B::bytes);
        panel.groups[to].scale[p] = four_times(scales, p);
    }
    if constexpr (B::min) _mm_storeu_ps(panel.least + 4 * to, four_halves<B::bytes>(at + 2));
}

template <int TYPE>
inline void unpack_row(const Panel &panel, size_t row, const uint8_t *at, uint32_t cols) {
    constexpr size_t bytes = size_t{4} * Block<TYPE>::bytes;
    size_t to = row * panel.count;
    uint32_t c = 0;
    for (; c + kGroup <= cols; c += kGroup, at += bytes) {
        prefetch(at);
        prefetch(at + 64);
        unpack<TYPE>(panel, to++, at);
    }
    if (c < cols) {
        uint8_t padded[bytes] = {};
        memcpy(padded, at, (cols - c) / 32 * size_t{Block<TYPE>::bytes});
        unpack<TYPE>(panel, to, padded);
    }
}

}  // namespace
}  // namespace rwkvflow

#include "kernels_avx2_super.h"

namespace rwkvflow {
namespace {

// R rows against T tokens; `some` of the rows are there.
template <int TYPE, int R, int T>
inline void tile_blocks(const Panel &panel, size_t row, const Activations &x, size_t token, float *y, size_t ldy, uint32_t some) {
    __m256 sums[T][R];
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) sums[t][r] = _mm256_setzero_ps();
    const Group *groups = panel.groups + row * panel.count;
    const float *least = panel.least + 4 * row * panel.count;
    const size_t count = panel.count;
    for (size_t g = 0; g < count; ++g, ++groups) {
        for (int p = 0; p < 2; ++p)
            for (int t = 0; t < T; ++t) {
                const size_t at = (token + static_cast<size_t>(t)) * x.stride + g * kGroup;
                const Pair in = load_inputs(x.q + at, p);
                const int32_t *n = x.n + at / 8 + 8 * p;
                const __m256 d = four_times(_mm_loadu_ps(x.d + at / 32), p);
                for (int r = 0; r < R; ++r) {
                    const Group &own = groups[static_cast<size_t>(r) * count];
                    sums[t][r] = add_pair<TYPE>(sums[t][r], own.pairs[p], in, n, _mm256_mul_ps(own.scale[p], d));
                }
            }
        if (Block<TYPE>::super ? g % 2 != 0 : Block<TYPE>::min)
            for (int t = 0; t < T; ++t) {
                const float *in = x.s + ((token + static_cast<size_t>(t)) * x.stride + g * kGroup) / 32;
                for (int r = 0; r < R; ++r) {
                    const float *own = least + 4 * (static_cast<size_t>(r) * count + g);
                    if constexpr (Block<TYPE>::super)
                        sums[t][r] = take_minima(sums[t][r], _mm256_loadu_ps(own - 4), _mm256_loadu_ps(in - 4));
                    else
                        sums[t][r] = add_minima(sums[t][r], _mm_loadu_ps(own), _mm_loadu_ps(in));
                }
            }
    }
    for (int t = 0; t < T; ++t)
        for (uint32_t r = 0; r < some; ++r) y[static_cast<size_t>(t) * ldy + r] = lane_sum(sums[t][r]);
}

template <int TYPE>
void matmul_type(const Product &p) {
    const Matrix &w = *p.w;
    const uint8_t *at = w.data + w.row_bytes * p.row0;
    if (p.tokens == 1) {
        for (uint32_t row = p.row0; row < p.row1; ++row, at += w.row_bytes) {
            if constexpr (Block<TYPE>::super) p.y[row] = row_super<TYPE>(at, w.cols, *p.x);
            else p.y[row] = row_blocks<TYPE>(at, w.cols, *p.x);
        }
        return;
    }
    constexpr uint32_t kRows = kScratchRows, R = 2, T = 2;  // more, and sums leave the sixteen registers
    Panel panel = {static_cast<Group *>(p.scratch), nullptr, (size_t{w.cols} + kGroup - 1) / kGroup};
    panel.least = reinterpret_cast<float *>(panel.groups + kRows * panel.count);
    for (uint32_t row = p.row0; row < p.row1; row += kRows) {
        const uint32_t rows = p.row1 - row < kRows ? p.row1 - row : kRows;
        for (uint32_t r = 0; r < rows; ++r, at += w.row_bytes) {
            if constexpr (Block<TYPE>::super) unpack_super<TYPE>(panel, r, at);
            else unpack_row<TYPE>(panel, r, at, w.cols);
        }
        const Next next = {at, w.row_bytes * (p.row1 - row - rows < kRows ? p.row1 - row - rows : kRows)};
        for (uint32_t t = 0; t < p.tokens;) {
            const bool many = t + T <= p.tokens;
            next.prefetch(t, many ? T : 1, p.tokens);
            for (uint32_t r = 0; r < rows; r += R) {  // rows that are not there are worked out from what was, and dropped
                float *y = p.y + static_cast<size_t>(t) * p.ldy + row + r;
                const uint32_t some = rows - r < R ? rows - r : R;
                if (many) tile_blocks<TYPE, R, T>(panel, r, *p.x, t, y, p.ldy, some);
                else tile_blocks<TYPE, R, 1>(panel, r, *p.x, t, y, p.ldy, some);
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

// Block b of a token stands at pair b / 2: its first half at 16 * (b % 2), its second half 32 bytes after.
void quantize(const Activations *x, uint32_t t, uint32_t c0, uint32_t c1) {
    for (uint32_t c = c0; c < c1; c += 32) {
        const size_t at = static_cast<size_t>(t) * x->stride + c;
        __m256 in[4];
        for (int i = 0; i < 4; ++i) in[i] = _mm256_loadu_ps(x->f + at + 8 * i);
        const __m256 sign = _mm256_set1_ps(-0.0f);
        const auto size = [=](__m256 v) { return _mm256_andnot_ps(sign, v); };
        const __m256 most = _mm256_max_ps(_mm256_max_ps(size(in[0]), size(in[1])), _mm256_max_ps(size(in[2]), size(in[3])));
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        const float largest = _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
        const float scale = largest / 127.0f;
        const __m256 factor = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
        __m256i q[4];
        for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(in[i], factor));
        // Packing works on halves of registers: fours of bytes come out of order.
        const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const __m256i bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
        int8_t *to = x->q + at - c % 64 + c % 64 / 2;
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 32), _mm256_extracti128_si256(bytes, 1));
        const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
        __m128i lanes = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(x->n + at / 8), _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), lanes), 3));
        lanes = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
        lanes = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0xb1));
        x->d[at / 32] = scale;
        x->s[at / 32] = scale * static_cast<float>(_mm_cvtsi128_si32(lanes));
    }
}

}  // namespace
}  // namespace rwkvflow

// Products with quantized matrices in 256-bit registers, for kernels_avx2.h: kernels_tiles.h says what they come to.
//
// A row with one token: two blocks are a pair, with the weights 0 .. 15 of both in one register and 16 .. 31 in another, and
// four pairs a group, of whose sums the even blocks' are in the lower lanes.
#pragma once

namespace rwkvflow {
namespace {

enum : uint32_t { kLanes = 8, kTile = 4 };
typedef V8 Lanes;
typedef I8 LaneInts;
enum : uint32_t { kTogether = 2 };
typedef __m256 Wide;

// Word j of a block of row or token `own` of `count`: registers have a word of each.
constexpr size_t word_of(size_t j, size_t own, size_t count) { return j * count + own; }

// Whose sum is in a lane of the running sums.
constexpr size_t block_of(size_t lane) { return lane % 4 * 2 + lane / 4; }
inline Wide zero() { return _mm256_setzero_ps(); }
inline float sum_of(Wide sums) {
    const __m128 pairs = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    const __m128 fours = _mm_add_ps(pairs, _mm_movehl_ps(pairs, pairs));
    return _mm_cvtss_f32(_mm_add_ss(fours, _mm_shuffle_ps(fours, fours, 1)));
}

}  // namespace
}  // namespace rwkvflow

#include "kernels_tiles.h"
#include "kernels_x86_blocks.h"
#include "kernels_x86_rows.h"

namespace rwkvflow {
namespace {

// What the sums of a type start from, or -1 for nothing.
template <int TYPE>
constexpr int start() {
#if defined(RWKV_AVX_VNNI)
    if (TYPE == kQ8_0) return start_of(128);
#endif
    return Block<TYPE>::offset != 0 ? start_of(Block<TYPE>::offset) : -1;
}

// A packed block and T tokens.
template <int TYPE, int T>
inline void multiply(const uint8_t *w, const int8_t *q, const int32_t *n, I8 out[T]) {
    const auto input = [=](int j, int t) {
        int32_t four;
        memcpy(&four, q + (j * static_cast<int>(kTile) + t) * 4, 4);
        return _mm256_set1_epi32(four);
    };
    __m256i sums[T];
    for (int t = 0; t < T; ++t) {
        if constexpr (start<TYPE>() < 0) sums[t] = _mm256_setzero_si256();
        else sums[t] = _mm256_set1_epi32(n[start<TYPE>() * static_cast<int>(kTile) + t]);
    }
#if defined(RWKV_AVX_VNNI)
    __m256i more[T];  // or every instruction waits for the one before
    for (int t = 0; t < T; ++t) more[t] = _mm256_setzero_si256();
    for (int j = 0; j < 8; j += 2) {
        const __m256i even = load_bytes(w + 32 * j), odd = load_bytes(w + 32 * j + 32);
        for (int t = 0; t < T; ++t) {
            sums[t] = _mm256_dpbusd_avx_epi32(sums[t], even, input(j, t));
            more[t] = _mm256_dpbusd_avx_epi32(more[t], odd, input(j + 1, t));
        }
    }
    for (int t = 0; t < T; ++t) sums[t] = _mm256_add_epi32(sums[t], more[t]);
#else
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (TYPE == kQ8_0) {
        // Two products fit 16 bits, at most 2 * 128 * 127; four do not.
        for (int j = 0; j < 8; ++j) {
            const __m256i own = load_bytes(w + 32 * j), size = _mm256_abs_epi8(own);
            for (int t = 0; t < T; ++t) {
                const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(input(j, t), own));
                sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs, ones));
            }
        }
    } else {
        // Of weights up to 15 all 16 products of a lane do, at most 16 * 15 * 127, and half of them of weights up to 31.
        constexpr int kPart = Block<TYPE>::five ? 4 : 8;
        for (int first = 0; first < 8; first += kPart) {
            __m256i pairs[T];
            for (int t = 0; t < T; ++t) pairs[t] = _mm256_maddubs_epi16(load_bytes(w + 32 * first), input(first, t));
            for (int j = first + 1; j < first + kPart; ++j) {
                const __m256i own = load_bytes(w + 32 * j);
                for (int t = 0; t < T; ++t) pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(own, input(j, t)));
            }
            for (int t = 0; t < T; ++t) sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs[t], ones));
        }
    }
#endif
    memcpy(out, sums, sizeof sums);
}

struct Pair {
    __m256i low, high;
};

// Weights as unsigned bytes, with their offset; of Q8_0 as signed ones, or with AVX-VNNI unsigned and 128 too large.
template <int TYPE>
inline Pair load_pair(const uint8_t *at) {
    using B = Block<TYPE>;
    if constexpr (TYPE == kQ8_0)
        return {ready_bytes(two_pieces(at + 2, at + B::bytes + 2)), ready_bytes(two_pieces(at + 18, at + B::bytes + 18))};
    const __m256i both = two_pieces(at + B::quants, at + B::bytes + B::quants), nibble = _mm256_set1_epi8(15);
    Pair out = {_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)};
    if constexpr (B::five) {
        // Every byte gets the byte with its fifth bit; then its own bit of it decides.
        const __m256i bits = two_pieces(at + B::high, at + B::bytes + B::high);
        const __m256i own = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const auto fifth = [=](long long first) {
            const long long one = 0x0101010101010101;
            const __m256i spread = _mm256_set_epi64x((first + 1) * one, first * one, (first + 1) * one, first * one);
            return fifth_bits(_mm256_shuffle_epi8(bits, spread), own);
        };
        out.low = _mm256_or_si256(out.low, fifth(0));
        out.high = _mm256_or_si256(out.high, fifth(2));
    }
    return out;
}

// Sub-blocks 2 * pair and 2 * pair + 1 of a super-block: low and high nibbles of the same 32 bytes.
template <int TYPE>
inline Pair load_super(const uint8_t *at, int pair) {
    using B = Block<TYPE>;
    const __m256i both = load_bytes(at + B::quants + 32 * pair), nibble = _mm256_set1_epi8(15);
    __m256i even = _mm256_and_si256(both, nibble), odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    if constexpr (B::five) {
        const __m256i bits = load_bytes(at + B::high), sixteen = _mm256_set1_epi8(16);
        const auto fifth = [=](int sub) {
            const __m256i moved = sub < 4 ? _mm256_slli_epi16(bits, 4 - sub) : _mm256_srli_epi16(bits, sub - 4);
            return _mm256_and_si256(moved, sixteen);
        };
        even = _mm256_or_si256(even, fifth(2 * pair));
        odd = _mm256_or_si256(odd, fifth(2 * pair + 1));
    }
    return {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
}

// Lane sums of a pair: four lanes of the first block, four of the second.
template <int TYPE>
inline __m256i pair_sums(const Pair &w, const int8_t *q) {
    const Pair x = {load_bytes(q), load_bytes(q + 32)};
#if defined(RWKV_AVX_VNNI)
    return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w.low, x.low), w.high, x.high);
#else
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (TYPE == kQ8_0) {
        const __m256i low = _mm256_maddubs_epi16(_mm256_abs_epi8(w.low), _mm256_sign_epi8(x.low, w.low));
        const __m256i high = _mm256_maddubs_epi16(_mm256_abs_epi8(w.high), _mm256_sign_epi8(x.high, w.high));
        return _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
    }
    return _mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(w.low, x.low), _mm256_maddubs_epi16(w.high, x.high)), ones);
#endif
}

template <int TYPE>
inline Wide add_group(Wide sums, const uint8_t *w, const Group &x) {
    using B = Block<TYPE>;
    __m256i pairs[4];
    for (int p = 0; p < 4; ++p) {
        if constexpr (B::super) pairs[p] = pair_sums<TYPE>(load_super<TYPE>(w, p), x.q + 64 * p);
        else pairs[p] = pair_sums<TYPE>(load_pair<TYPE>(w + 2 * p * B::bytes), x.q + 64 * p);
    }
    const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(pairs[0], pairs[1]), _mm256_unpackhi_epi32(pairs[0], pairs[1]));
    const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(pairs[2], pairs[3]), _mm256_unpackhi_epi32(pairs[2], pairs[3]));
    __m256i whole = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    if constexpr (start<TYPE>() >= 0) whole = _mm256_add_epi32(whole, load_bytes(x.n + 16 * start<TYPE>()));
    __m256 scale, least;
    if constexpr (B::super) {
        const __m256i lanes = _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0);
        super_scales(w, &scale, &least);
        scale = _mm256_permutevar8x32_ps(scale, lanes);
        least = _mm256_permutevar8x32_ps(least, lanes);
    } else {
        const auto block = [=](int lane) { return w + block_of(static_cast<size_t>(lane)) * B::bytes; };
        scale = eight_halves(block);
        if constexpr (B::min) least = eight_halves([=](int lane) { return block(lane) + 2; });
    }
    sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(scale, _mm256_loadu_ps(x.d)), sums);
    if constexpr (B::min) sums = _mm256_fmadd_ps(least, _mm256_loadu_ps(x.s), sums);
    return sums;
}

}  // namespace
}  // namespace rwkvflow

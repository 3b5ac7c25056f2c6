// Products with quantized matrices in 512-bit registers with VNNI, for kernels_avx512.cc: kernels_tiles.h says what they come to.
//
// A row with one token: four blocks, 128 weights, are a half; one register of unsigned bytes holds the weights 0 .. 15 of each
// block, one the weights 16 .. 31. Two dot product instructions give four lanes of exact sums a block, and those of two halves,
// a group, are gathered in one register. There the sum of block q is in the lanes 4 q and 4 q + 2, that of block 4 + q in the two
// others: everything is there twice.
#pragma once

namespace rwkvflow {
namespace {

enum : uint32_t { kLanes = 16, kTile = 8 };
typedef V16 Lanes;
typedef int32_t LaneInts __attribute__((vector_size(64)));
enum : uint32_t { kTogether = 4 };
typedef __m512 Wide;

// Word j of a block of row or token `own` of `count`: registers have a word of each.
constexpr size_t word_of(size_t j, size_t own, size_t count) { return j * count + own; }

// Whose sum is in a lane of the running sums.
constexpr size_t block_of(size_t lane) { return lane / 4 + lane % 2 * 4; }
inline Wide zero() { return _mm512_setzero_ps(); }
inline float sum_of(Wide sums) {
    const __m512 pairs = _mm512_add_ps(sums, _mm512_shuffle_f32x4(sums, sums, _MM_SHUFFLE(2, 3, 0, 1)));
    // 0 + 1 and 4 + 5 in the first two lanes of the one, 2 + 3 and 6 + 7 of the other; then in turns.
    const __m128 both = _mm_unpacklo_ps(_mm512_castps512_ps128(pairs), _mm512_extractf32x4_ps(pairs, 2));
    const __m128 fours = _mm_add_ps(both, _mm_movehl_ps(both, both));
    return _mm_cvtss_f32(_mm_add_ss(fours, _mm_shuffle_ps(fours, fours, 1)));
}

}  // namespace
}  // namespace rwkvflow

#define RWKV_AVX512_VNNI
#include "kernels_tiles.h"
#include "kernels_x86_blocks.h"
#include "kernels_x86_rows.h"

namespace rwkvflow {
namespace {

// What the sums of a type start from, or -1 for nothing.
template <int TYPE>
constexpr int start() {
    if (TYPE == kQ8_0) return start_of(128);
    return Block<TYPE>::offset != 0 ? start_of(Block<TYPE>::offset) : -1;
}

// A packed block and T tokens.
template <int TYPE, int T>
inline void multiply(const uint8_t *w, const int8_t *q, const int32_t *n, LaneInts out[T]) {
    const auto word = [](const void *at) {
        int32_t value;
        memcpy(&value, at, 4);
        return _mm512_set1_epi32(value);
    };
    __m512i sums[T];
    for (int t = 0; t < T; ++t) {
        if constexpr (start<TYPE>() < 0) sums[t] = _mm512_setzero_si512();
        else sums[t] = word(n + start<TYPE>() * static_cast<int>(kTile) + t);
    }
    for (int j = 0; j < 8; ++j) {
        const __m512i own = _mm512_load_si512(w + 64 * j);
        for (int t = 0; t < T; ++t) sums[t] = _mm512_dpbusd_epi32(sums[t], own, word(q + (j * static_cast<int>(kTile) + t) * 4));
    }
    memcpy(out, sums, sizeof sums);
}

template <int TYPE>
struct Layout {
    static constexpr int bytes = 4 * Block<TYPE>::bytes;  // of a half
    // Words are taken from the 64 bytes at the start and, where `second` is not 0, the 64 at `second`.
    static constexpr int second = TYPE == kQ8_0 ? 64 : Block<TYPE>::five ? bytes - 64 : 0;

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

struct Half {
    __m512i low, high;
    __m512i scales;  // words: scales, then minima
};

// 16 bytes at `at` of each of four blocks.
template <int BYTES>
inline __m512i four_pieces(const uint8_t *at) {
    const __m256i front = two_pieces(at, at + BYTES), back = two_pieces(at + 2 * BYTES, at + 3 * BYTES);
    return _mm512_inserti64x4(_mm512_castsi256_si512(front), back, 1);
}

template <int TYPE>
inline Half load_half(const uint8_t *at) {
    using B = Block<TYPE>;
    using L = Layout<TYPE>;
    Half h;
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
    h.scales = words(L::kScales);
    if constexpr (TYPE == kQ8_0) {
        const __m512i flip = _mm512_set1_epi8(-128);
        h.low = _mm512_xor_si512(four_pieces<B::bytes>(at + 2), flip);
        h.high = _mm512_xor_si512(four_pieces<B::bytes>(at + 18), flip);
    } else {
        const __m512i both = four_pieces<B::bytes>(at + B::quants), nibble = _mm512_set1_epi8(15);
        h.low = _mm512_and_si512(both, nibble);
        h.high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        if constexpr (B::five) {
            const __m128i bits = _mm512_castsi512_si128(words(L::kBits));
            const __m512i sixteen = _mm512_set1_epi8(16);
            const __mmask64 low = static_cast<__mmask64>(_mm_cvtsi128_si64(bits));
            const __mmask64 high = static_cast<__mmask64>(_mm_extract_epi64(bits, 1));
            h.low = _mm512_mask_add_epi8(h.low, low, h.low, sixteen);
            h.high = _mm512_mask_add_epi8(h.high, high, h.high, sixteen);
        }
    }
    return h;
}

// Half 0 or 1 of a super-block: four sub-blocks. Its scales are not filled in.
template <int TYPE>
inline Half load_super(const uint8_t *at, int half) {
    using B = Block<TYPE>;
    Half h;
    // Quarters: the halves of sub-blocks 0 and 2 in low nibbles, of 1 and 3 in high ones.
    const __m512i both = _mm512_loadu_si512(at + B::quants + 64 * half), nibble = _mm512_set1_epi8(15);
    const __m512i even = _mm512_and_si512(both, nibble), odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    h.low = _mm512_permutex2var_epi64(even, _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), odd);
    h.high = _mm512_permutex2var_epi64(even, _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2), odd);
    if constexpr (B::five) {
        const __m512i sixteen = _mm512_set1_epi8(16);
        const auto bits = [=](int from) {
            const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at + B::high + from));
            const __m512i four = _mm512_broadcast_i32x4(own);
            // Bit 4 * half + i to bit 4 in quarter i; what crosses bytes is masked off.
            constexpr long long one = 0x0001000100010001;
            if (half == 0)
                return _mm512_sllv_epi16(four, _mm512_set_epi64(one, one, 2 * one, 2 * one, 3 * one, 3 * one, 4 * one, 4 * one));
            return _mm512_srlv_epi16(four, _mm512_set_epi64(3 * one, 3 * one, 2 * one, 2 * one, one, one, 0, 0));
        };
        h.low = _mm512_ternarylogic_epi32(h.low, bits(0), sixteen, 0xf8);  // a | (b & c)
        h.high = _mm512_ternarylogic_epi32(h.high, bits(16), sixteen, 0xf8);
    }
    h.scales = _mm512_setzero_si512();
    return h;
}

template <int TYPE>
inline Wide add_group(Wide sums, const uint8_t *w, const Group &x) {
    using B = Block<TYPE>;
    Half halves[2];
    __m512i lanes[2];
    for (int i = 0; i < 2; ++i) {
        if constexpr (B::super) halves[i] = load_super<TYPE>(w, i);
        else halves[i] = load_half<TYPE>(w + i * Layout<TYPE>::bytes);
        const int8_t *q = x.q + 128 * i;
        lanes[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), halves[i].low, _mm512_loadu_si512(q));
        lanes[i] = _mm512_dpbusd_epi32(lanes[i], halves[i].high, _mm512_loadu_si512(q + 64));
    }
    const __m512i pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(lanes[0], lanes[1]), _mm512_unpackhi_epi32(lanes[0], lanes[1]));
    __m512i whole = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC));
    if constexpr (start<TYPE>() >= 0) whole = _mm512_add_epi32(whole, _mm512_loadu_si512(x.n + 16 * start<TYPE>()));
    __m512 scale, least;
    if constexpr (B::super) {
        const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i *>(w));  // d and dmin
        const __m512i twice = _mm512_set_epi32(7, 3, 7, 3, 6, 2, 6, 2, 5, 1, 5, 1, 4, 0, 4, 0);
        const __m512 numbers = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(super_numbers(w)));
        const __m128 factors = _mm_xor_ps(_mm_cvtph_ps(first), _mm_set_ps(0.0f, 0.0f, -0.0f, 0.0f));
        const __m512i upper = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
        const __m512 both = _mm512_mul_ps(numbers, _mm512_permutexvar_ps(upper, _mm512_castps128_ps512(factors)));
        scale = _mm512_permutexvar_ps(twice, both);
        least = _mm512_permutexvar_ps(_mm512_add_epi32(twice, _mm512_set1_epi32(8)), both);
    } else {
        const __m512i words = _mm512_mask_blend_epi16(0xaaaaaaaa, halves[0].scales, halves[1].scales);
        scale = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
        if constexpr (B::min) least = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
    }
    sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(scale, _mm512_loadu_ps(x.d)), sums);
    if constexpr (B::min) sums = _mm512_fmadd_ps(least, _mm512_loadu_ps(x.s), sums);
    return sums;
}

}  // namespace
}  // namespace rwkvflow

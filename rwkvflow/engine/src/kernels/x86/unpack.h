// The weights of blocks as bytes, 32 at a time, for avx2.cc and avx512.cc: what other_blocks.inc has in plain C++.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/common/types.h"

namespace rwkvflow {
namespace {

inline void curve_block(const uint8_t *at, int8_t *q) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i *>(kCurveValues));
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at)), nibble = _mm_set1_epi8(15);
    __m128i *const to = reinterpret_cast<__m128i *>(q);
    _mm_storeu_si128(to, _mm_shuffle_epi8(values, _mm_and_si128(both, nibble)));
    _mm_storeu_si128(to + 1, _mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16(both, 4), nibble)));
}

inline void signed_points(const uint32_t points[8], uint32_t signs, int8_t *q) {
    const __m256i bytes = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i own = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(signs)), bytes);
    const __m256i negative = _mm256_cmpeq_epi8(_mm256_and_si256(spread, own), own);
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(points));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(q), _mm256_sub_epi8(_mm256_xor_si256(weights, negative), negative));
}

// Weights 32 * i .. 32 * i + 31 of 256 with two bits each.
inline __m256i two_bits_of(const uint8_t *low, int i) {
    const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(low + i / 4 * 32));
    return _mm256_and_si256(_mm256_srli_epi16(four, i % 4 * 2), _mm256_set1_epi8(3));
}
inline void two_bits(const uint8_t low[64], int8_t *q) {
    for (int i = 0; i < 8; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i *>(q + 32 * i), two_bits_of(low, i));
}
inline void three_bits(const uint8_t low[64], const uint8_t mask[32], int8_t *q) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(mask));
    for (int i = 0; i < 8; ++i) {
        const __m256i third = _mm256_and_si256(bits, _mm256_set1_epi8(static_cast<char>(1 << i)));
        const __m256i less = _mm256_and_si256(_mm256_cmpeq_epi8(third, _mm256_setzero_si256()), _mm256_set1_epi8(4));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(q + 32 * i), _mm256_sub_epi8(two_bits_of(low, i), less));
    }
}

}  // namespace
}  // namespace rwkvflow

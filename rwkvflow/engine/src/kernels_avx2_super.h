// Super-blocks of Q4_K and Q5_K for kernels_avx2_blocks.h: two groups each, whose minima are taken off together.
#pragma once

namespace rwkvflow {
namespace {

// Scales of the eight sub-blocks of a super-block, and their minima.
inline void super_scales(const uint8_t *at, __m256 *scale, __m256 *least) {
    const __m128i head = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));  // d and dmin, then three words of bits
    const __m128i words = _mm_srlv_epi32(_mm_shuffle_epi32(head, _MM_SHUFFLE(3, 2, 3, 1)), _mm_set_epi32(4, 0, 0, 0));
    const __m128i upper = _mm_srli_epi32(_mm_shuffle_epi32(head, _MM_SHUFFLE(2, 2, 1, 1)), 2);
    const __m128i own = _mm_set_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f);
    const __m128i rest = _mm_set_epi32(0x30303030, 0, 0x30303030, 0);
    const __m128i numbers = _mm_or_si128(_mm_and_si128(words, own), _mm_and_si128(upper, rest));
    const auto eight = [](__m128i bytes, float by) {
        return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(by));
    };
    *scale = eight(numbers, half_scale(at));
    *least = eight(_mm_srli_si128(numbers, 8), half_scale(at + 2));
}

// Sub-blocks 2 * pair and 2 * pair + 1: low and high nibbles of the same 32 bytes.
template <int TYPE, int PAIR>
inline Pair load_super(const uint8_t *at) {
    using B = Block<TYPE>;
    const __m256i both = load_bytes(at + B::quants + 32 * PAIR), nibble = _mm256_set1_epi8(15);
    __m256i even = _mm256_and_si256(both, nibble), odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    if constexpr (B::five) {
        const __m256i bits = load_bytes(at + B::high), sixteen = _mm256_set1_epi8(16);
        const auto fifth = [=](int sub) {
            const __m256i moved = sub < 4 ? _mm256_slli_epi16(bits, 4 - sub) : _mm256_srli_epi16(bits, sub - 4);
            return _mm256_and_si256(moved, sixteen);
        };
        even = _mm256_or_si256(even, fifth(2 * PAIR));
        odd = _mm256_or_si256(odd, fifth(2 * PAIR + 1));
    }
    return {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
}

// A row against one token.
template <int TYPE>
inline float row_super(const uint8_t *w, uint32_t cols, const Activations &x) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t c = 0; c < cols; c += 256, w += Block<TYPE>::bytes) {
        prefetch(w);
        prefetch(w + 64);
        prefetch(w + 128);
        __m256 scale, least;
        super_scales(w, &scale, &least);
        scale = _mm256_mul_ps(scale, _mm256_loadu_ps(x.d + c / 32));
        const __m128 first = _mm256_castps256_ps128(scale), second = _mm256_extractf128_ps(scale, 1);
        const int32_t *n = x.n + c / 8;
        sum = add_pair<TYPE>(sum, load_super<TYPE, 0>(w), load_inputs(x.q + c, 0), n, four_times(first, 0));
        sum = add_pair<TYPE>(sum, load_super<TYPE, 1>(w), load_inputs(x.q + c, 1), n, four_times(first, 1));
        sum = add_pair<TYPE>(sum, load_super<TYPE, 2>(w), load_inputs(x.q + c, 2), n, four_times(second, 0));
        sum = add_pair<TYPE>(sum, load_super<TYPE, 3>(w), load_inputs(x.q + c, 3), n, four_times(second, 1));
        sum = take_minima(sum, least, _mm256_loadu_ps(x.s + c / 32));
    }
    return lane_sum(sum);
}

// A row as groups, two of a super-block.
template <int TYPE>
inline void unpack_super(const Panel &panel, size_t row, const uint8_t *at) {
    for (size_t to = row * panel.count; to < (row + 1) * panel.count; to += 2, at += Block<TYPE>::bytes) {
        prefetch(at);
        prefetch(at + 64);
        prefetch(at + 128);
        __m256 scale, least;
        super_scales(at, &scale, &least);
        const __m128 first = _mm256_castps256_ps128(scale), second = _mm256_extractf128_ps(scale, 1);
        panel.groups[to] = {{load_super<TYPE, 0>(at), load_super<TYPE, 1>(at)}, {four_times(first, 0), four_times(first, 1)}};
        panel.groups[to + 1] = {{load_super<TYPE, 2>(at), load_super<TYPE, 3>(at)}, {four_times(second, 0), four_times(second, 1)}};
        _mm256_storeu_ps(panel.least + 4 * to, least);
    }
}

}  // namespace
}  // namespace rwkvflow

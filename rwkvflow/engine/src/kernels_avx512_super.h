// Products with super-blocks (Q4_K, Q5_K) for kernels_avx512_blocks.h, whose order of inputs and groups of 128 weights they share:
// a super-block is two groups. Minima come with 32 weights and are multiplied with the sums of 32 inputs: eight lanes for a
// super-block, in sums of their own.
#pragma once

namespace rwkvflow {
namespace {

// Group `half` (0 or 1) of a super-block: four sub-blocks.
template <int TYPE>
inline void load_super(const uint8_t *at, int half, __m512i *low, __m512i *high) {
    using B = Block<TYPE>;
    // Quarters: the halves of sub-blocks 0 and 2 in low nibbles, of 1 and 3 in high ones.
    const __m512i both = _mm512_loadu_si512(at + B::quants + 64 * half), nibble = _mm512_set1_epi8(15);
    const __m512i even = _mm512_and_si512(both, nibble), odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    *low = _mm512_permutex2var_epi64(even, _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), odd);
    *high = _mm512_permutex2var_epi64(even, _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2), odd);
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
        *low = _mm512_ternarylogic_epi32(*low, bits(0), sixteen, 0xf8);  // a | (b & c)
        *high = _mm512_ternarylogic_epi32(*high, bits(16), sixteen, 0xf8);
    }
}

// Scales of the eight sub-blocks, then their minima.
inline __m512 super_scales(const uint8_t *at) {
    const __m128i head = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));  // d and dmin, then three words of bits
    const __m128i words = _mm_srlv_epi32(_mm_shuffle_epi32(head, _MM_SHUFFLE(3, 2, 3, 1)), _mm_set_epi32(4, 0, 0, 0));
    const __m128i upper = _mm_srli_epi32(_mm_shuffle_epi32(head, _MM_SHUFFLE(2, 2, 1, 1)), 2);
    const __m128i own = _mm_set_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f);
    const __m128i numbers =
        _mm_ternarylogic_epi32(_mm_and_si128(words, own), upper, _mm_set_epi32(0x30303030, 0, 0x30303030, 0), 0xf8);
    const __m512i first = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512 factors = _mm512_permutexvar_ps(first, _mm512_castps128_ps512(_mm_cvtph_ps(head)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(numbers)), factors);
}

// Those of a group's sub-blocks, each four times.
inline __m512 four_times(__m512 scales, int half) {
    const __m512i first = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(half == 0 ? first : _mm512_add_epi32(first, _mm512_set1_epi32(4)), scales);
}

inline float upper_sum(__m512 v) { return sum_lanes8(reinterpret_cast<V8>(_mm512_extractf32x8_ps(v, 1))); }

// A row against one token.
template <int TYPE>
inline float row_super(const uint8_t *w, uint32_t cols, const Activations &x) {
    __m512 sum = _mm512_setzero_ps(), minima = _mm512_setzero_ps();  // of the minima the upper half counts
    for (size_t c = 0; c < cols; c += 256, w += Block<TYPE>::bytes) {
        prefetch(w);
        prefetch(w + 64);
        prefetch(w + 128);
        const __m512 scales = super_scales(w);
        const __m512 in = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(x.d + c / 32)), _mm256_loadu_ps(x.s + c / 32), 1);
        const __m512 scaled = _mm512_mul_ps(scales, in);
        minima = _mm512_fmadd_ps(scales, in, minima);
        for (int half = 0; half < 2; ++half) {
            __m512i low, high;
            load_super<TYPE>(w, half, &low, &high);
            const int8_t *q = x.q + c + 128 * half;
            __m512i whole = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(q));
            whole = _mm512_dpbusd_epi32(whole, high, _mm512_loadu_si512(q + 64));
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), four_times(scaled, half), sum);
        }
    }
    return sum_lanes16(reinterpret_cast<V16>(sum)) - upper_sum(minima);
}

template <int TYPE>
void matmul_super(const Product &p) {
    const Matrix &w = *p.w;
    if (p.tokens == 1) {
        const uint8_t *at = w.data + w.row_bytes * p.row0;
        for (uint32_t row = p.row0; row < p.row1; ++row, at += w.row_bytes) p.y[row] = row_super<TYPE>(at, w.cols, *p.x);
        return;
    }
    constexpr uint32_t kPanel = kScratchRows;
    const __m128i shift = _mm_cvtsi32_si128(32);  // no offset
    const size_t groups = w.cols / kGroup, supers = w.cols / 256;
    Group<false> *const panel = static_cast<Group<false> *>(p.scratch);
    __m256 *const minima = reinterpret_cast<__m256 *>(panel + kPanel * groups);
    for (uint32_t row = p.row0; row < p.row1; row += kPanel) {
        const uint32_t rows = p.row1 - row < kPanel ? p.row1 - row : kPanel;
        for (uint32_t r = 0; r < rows; ++r) {
            const uint8_t *at = w.data + w.row_bytes * (row + r);
            Group<false> *to = panel + r * groups;
            for (size_t s = 0; s < supers; ++s, at += Block<TYPE>::bytes) {
                prefetch(at);
                prefetch(at + 64);
                prefetch(at + 128);
                const __m512 scales = super_scales(at);
                minima[r * supers + s] = _mm512_extractf32x8_ps(scales, 1);
                for (int half = 0; half < 2; ++half, ++to) {
                    load_super<TYPE>(at, half, &to->low, &to->high);
                    to->scale = four_times(scales, half);
                }
            }
        }
        for (uint32_t t = 0; t < p.tokens;) {
            const uint32_t left = p.tokens - t, step = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            for (uint32_t r = 0; r < rows; r += 4) {  // rows that are not there are worked out from what was, and dropped
                const Group<false> *from = panel + r * groups;
                float *y = p.y + static_cast<size_t>(t) * p.ldy + row + r;
                const uint32_t some = rows - r < 4 ? rows - r : 4;
                if (step == 4) tile_blocks<4, false>(from, groups, *p.x, t, shift, y, p.ldy, some);
                else if (step == 2) tile_blocks<2, false>(from, groups, *p.x, t, shift, y, p.ldy, some);
                else tile_blocks<1, false>(from, groups, *p.x, t, shift, y, p.ldy, some);
            }
            for (uint32_t i = t; i < t + step; ++i) {
                const float *sums = p.x->s + i * size_t{p.x->stride} / 32;
                for (uint32_t r = 0; r < rows; ++r) {
                    __m256 less = _mm256_setzero_ps();
                    for (size_t s = 0; s < supers; ++s)
                        less = _mm256_fmadd_ps(minima[r * supers + s], _mm256_loadu_ps(sums + 8 * s), less);
                    p.y[i * size_t{p.ldy} + row + r] -= sum_lanes8(reinterpret_cast<V8>(less));
                }
            }
            t += step;
        }
    }
}

}  // namespace
}  // namespace rwkvflow

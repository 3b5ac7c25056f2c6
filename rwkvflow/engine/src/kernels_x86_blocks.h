// Quantized weights and inputs in the layouts of kernels_tiles.h, for AVX2, AVX-VNNI and AVX-512: eight rows at a time.
#pragma once

namespace rwkvflow {
namespace {

inline __m256i load_bytes(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }

// 16 bytes at `a` and 16 at `b`.
inline __m256i two_pieces(const uint8_t *a, const uint8_t *b) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i *>(a));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i *>(b));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

// Bit 4 of every byte that has a bit of its own set in `bits`, which has the byte with that bit in its place.
inline __m256i fifth_bits(__m256i bits, __m256i own) {
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bits, own), own), _mm256_set1_epi8(16));
}

// The halves at `where(0)` .. `where(7)` as floats.
template <typename Where>
inline __m256 eight_halves(Where where) {
    const auto half = [=](int i) {
        uint16_t value;
        memcpy(&value, where(i), 2);
        return static_cast<short>(value);
    };
    return _mm256_cvtph_ps(_mm_set_epi16(half(7), half(6), half(5), half(4), half(3), half(2), half(1), half(0)));
}

// Factors of the scales of a super-block's eight sub-blocks, in the lower bytes, and of their minima. blocks.h says how they
// are packed.
inline __m128i super_numbers(const uint8_t *at) {
    const __m128i head = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));  // d and dmin, then three words of bits
    const __m128i words = _mm_srlv_epi32(_mm_shuffle_epi32(head, _MM_SHUFFLE(3, 2, 3, 1)), _mm_set_epi32(4, 0, 0, 0));
    const __m128i upper = _mm_srli_epi32(_mm_shuffle_epi32(head, _MM_SHUFFLE(2, 2, 1, 1)), 2);
    const __m128i own = _mm_set_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f);
    const __m128i rest = _mm_set_epi32(0x30303030, 0, 0x30303030, 0);
    return _mm_or_si128(_mm_and_si128(words, own), _mm_and_si128(upper, rest));
}
// Scales of the sub-blocks, and their minima, negated: those are added.
inline void super_scales(const uint8_t *at, __m256 *scale, __m256 *least) {
    const __m128i numbers = super_numbers(at);
    const auto eight = [](__m128i bytes, float by) {
        return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(by));
    };
    *scale = eight(numbers, half_scale(at));
    *least = eight(_mm_srli_si128(numbers, 8), -half_scale(at + 2));
}

// Eight rows, some of them perhaps twice.
struct Rows {
    const uint8_t *at[8];
};

// 16 bytes at `offset` of the rows: out[j] has bytes 4 j .. 4 j + 3 of each.
inline void side_by_side(const Rows &rows, size_t offset, __m256i out[4]) {
    __m256i in[4];
    for (int i = 0; i < 4; ++i) in[i] = two_pieces(rows.at[i] + offset, rows.at[i + 4] + offset);
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpacklo_epi32(in[2], in[3]);
    const __m256i c = _mm256_unpackhi_epi32(in[0], in[1]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(a, b);
    out[1] = _mm256_unpackhi_epi64(a, b);
    out[2] = _mm256_unpacklo_epi64(c, d);
    out[3] = _mm256_unpackhi_epi64(c, d);
}

// Where the eight rows stand in a panel: register j of block b.
struct Eight {
    const Panel &panel;
    size_t first;  // lane

    void put(size_t block, int j, __m256i w) const {
        uint8_t *to = panel.q + (block * 8 + static_cast<size_t>(j)) * 4 * kLanes + 4 * first;
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), w);
    }
    void put_scale(size_t block, __m256 scale) const { _mm256_storeu_ps(panel.scale + block * kLanes + first, scale); }
    void put_least(size_t block, __m256 least) const { _mm256_storeu_ps(panel.least + block * kLanes + first, least); }
};

// What makes Q8_0's bytes what multiply wants: unsigned for dot products of unsigned and signed bytes.
#if defined(RWKV_AVX_VNNI) || defined(RWKV_AVX512_VNNI)
inline __m256i ready_bytes(__m256i w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
#else
inline __m256i ready_bytes(__m256i w) { return w; }
#endif

template <int TYPE>
inline void pack_block(const Eight &to, size_t block, const Rows &rows, size_t at) {
    using B = Block<TYPE>;
    to.put_scale(block, eight_halves([&](int i) { return rows.at[i] + at; }));
    if constexpr (B::min) to.put_least(block, eight_halves([&](int i) { return rows.at[i] + at + 2; }));
    __m256i w[4];
    side_by_side(rows, at + B::quants, w);
    if constexpr (TYPE == kQ8_0) {
        for (int j = 0; j < 4; ++j) to.put(block, j, ready_bytes(w[j]));
        side_by_side(rows, at + B::quants + 16, w);
        for (int j = 0; j < 4; ++j) to.put(block, j + 4, ready_bytes(w[j]));
        return;
    }
    __m256i bits = _mm256_setzero_si256();
    if constexpr (B::five) {
        const auto word = [&](int i) {
            int32_t value;
            memcpy(&value, rows.at[i] + at + B::high, 4);
            return value;
        };
        bits = _mm256_set_epi32(word(7), word(6), word(5), word(4), word(3), word(2), word(1), word(0));
    }
    const __m256i nibble = _mm256_set1_epi8(15);
    // Every row's byte j / 2 of its bits, four times; register j wants the lower or the upper four of them.
    const auto fifth = [=](int j) {
        const __m256i four = _mm256_set1_epi32(static_cast<int>(0x01010101u * static_cast<unsigned>(j / 2)));
        const __m256i rows_of = _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0);
        const __m256i own = _mm256_set1_epi32(static_cast<int>(j % 2 == 0 ? 0x08040201u : 0x80402010u));
        return fifth_bits(_mm256_shuffle_epi8(bits, _mm256_add_epi8(rows_of, four)), own);
    };
    for (int j = 0; j < 4; ++j) {
        __m256i low = _mm256_and_si256(w[j], nibble), high = _mm256_and_si256(_mm256_srli_epi16(w[j], 4), nibble);
        if constexpr (B::five) {
            low = _mm256_or_si256(low, fifth(j));
            high = _mm256_or_si256(high, fifth(j + 4));
        }
        to.put(block, j, low);
        to.put(block, j + 4, high);
    }
}

// A super-block: blocks [block, block + 8).
template <int TYPE>
inline void pack_super(const Eight &to, size_t block, const Rows &rows, size_t at) {
    using B = Block<TYPE>;
    for (size_t row = 0; row < 8; ++row) {
        __m256 scale, least;
        super_scales(rows.at[row] + at, &scale, &least);
        float both[16];
        _mm256_storeu_ps(both, scale);
        _mm256_storeu_ps(both + 8, least);
        for (size_t sub = 0; sub < 8; ++sub) {
            to.panel.scale[(block + sub) * kLanes + to.first + row] = both[sub];
            to.panel.least[(block + sub) * kLanes + to.first + row] = both[8 + sub];
        }
    }
    const __m256i nibble = _mm256_set1_epi8(15), sixteen = _mm256_set1_epi8(16);
    for (int half = 0; half < 2; ++half) {
        __m256i w[4], bits[4];
        if constexpr (B::five) side_by_side(rows, at + B::high + 16 * static_cast<size_t>(half), bits);
        for (int pair = 0; pair < 4; ++pair) {
            side_by_side(rows, at + B::quants + 32 * static_cast<size_t>(pair) + 16 * static_cast<size_t>(half), w);
            for (int j = 0; j < 4; ++j) {
                __m256i low = _mm256_and_si256(w[j], nibble), high = _mm256_and_si256(_mm256_srli_epi16(w[j], 4), nibble);
                if constexpr (B::five) {
                    // Bits move within their bytes: the mask takes off what crosses.
                    const auto fifth = [=](int sub) {
                        const __m256i moved = sub < 4 ? _mm256_slli_epi16(bits[j], 4 - sub) : _mm256_srli_epi16(bits[j], sub - 4);
                        return _mm256_and_si256(moved, sixteen);
                    };
                    low = _mm256_or_si256(low, fifth(2 * pair));
                    high = _mm256_or_si256(high, fifth(2 * pair + 1));
                }
                to.put(block + 2 * static_cast<size_t>(pair), j + 4 * half, low);
                to.put(block + 2 * static_cast<size_t>(pair) + 1, j + 4 * half, high);
            }
        }
    }
}

template <int TYPE>
inline void pack(const Panel &panel, const uint8_t *w, size_t row_bytes, uint32_t rows) {
    for (uint32_t first = 0; first < kLanes; first += 8) {
        const Eight to = {panel, first};
        Rows eight;
        for (uint32_t i = 0; i < 8; ++i) eight.at[i] = w + (first + i < rows ? first + i : rows - 1) * row_bytes;
        constexpr size_t step = Block<TYPE>::super ? 8 : 1;
        for (size_t block = 0, at = 0; block < panel.blocks; block += step, at += Block<TYPE>::bytes) {
            if constexpr (Block<TYPE>::super) pack_super<TYPE>(to, block, eight, at);
            else pack_block<TYPE>(to, block, eight, at);
        }
    }
}

// Token `t` of as many as the matrices will be multiplied with at once.
void quantize(const Activations *x, uint32_t t, uint32_t tokens, uint32_t c0, uint32_t c1) {
    for (uint32_t c = c0; c < c1; c += 32) {
        const float *from = x->f + static_cast<size_t>(t) * x->stride + c;
        __m256 in[4];
        for (int i = 0; i < 4; ++i) in[i] = _mm256_loadu_ps(from + 8 * i);
        const __m256 sign = _mm256_set1_ps(-0.0f);
        const auto size = [=](__m256 v) { return _mm256_andnot_ps(sign, v); };
        const __m256 most = _mm256_max_ps(_mm256_max_ps(size(in[0]), size(in[1])), _mm256_max_ps(size(in[2]), size(in[3])));
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        const float largest = _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
        const __m256 factor = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
        __m256i q[4];
        for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(in[i], factor));
        // Packing works on halves of registers: fours of bytes come out of order.
        const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const __m256i ordered = _mm256_permutevar8x32_epi32(mixed, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
        const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), ordered), _mm256_set1_epi16(1));
        __m128i lanes = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        lanes = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
        lanes = _mm_add_epi32(lanes, _mm_shuffle_epi32(lanes, 0xb1));
        alignas(32) int8_t bytes[32];
        _mm256_store_si256(reinterpret_cast<__m256i *>(bytes), ordered);
        place(*x, t, tokens, c / 32, bytes, largest / 127.0f, _mm_cvtsi128_si32(lanes));
    }
}

}  // namespace
}  // namespace rwkvflow

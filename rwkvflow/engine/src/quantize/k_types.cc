// Quantizers of the K types that quantize_k.cc has not (Q2_K, Q3_K, Q6_K), and of all types with an importance matrix.
//
// Byte for byte what llama.cpp's quantizer writes: quantize_row_*_ref without importance, quantize_row_*_impl with it.
// The searches are in searches.h; here is which row they are given, and how codes are packed.
#include "quantize/quantize.h"
#include "quantize/searches.h"
#include "quantize/weighted.h"

namespace rwkvflow {
namespace {

constexpr uint32_t kSixteen = 16;                              // weights in a sub-block of Q2_K, Q3_K and Q6_K
constexpr uint32_t kSubBlocks = kSuperBlockLength / kSixteen;  // of these
constexpr uint32_t kPairs = kSuperBlockLength / kBlockLength;  // sub-blocks of Q4_K and Q5_K

// Two bits each of four weights a byte: see BlockQ2_K.
void pack_pairs_of_bits(const uint8_t *q, uint8_t *qs) {
    for (uint32_t half = 0; half < kSuperBlockLength; half += 128)
        for (uint32_t j = 0; j < 32; ++j) {
            const uint8_t *at = q + half + j;
            qs[half / 4 + j] =
                static_cast<uint8_t>((at[0] & 3) | (at[32] & 3) << 2 | (at[64] & 3) << 4 | (at[96] & 3) << 6);
        }
}

uint32_t pair_of_bits(const uint8_t *qs, uint32_t i) { return qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3u; }

// ---- Q2_K
// ---------------------------------------------------------------------------------------------------------------

void write_q2_k(const float *x, const float *importance, BlockQ2_K *y) {
    uint8_t q[kSuperBlockLength], scale_codes[kSubBlocks], least_codes[kSubBlocks];
    float scales[kSubBlocks], least[kSubBlocks], w[kSixteen], total[kSubBlocks];
    const float mean = importance != nullptr ? mean_square(x, kSuperBlockLength) : 0.0f;
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const float *row = x + kSixteen * s;
        Grids grids = {-0.5f, 0.1f, 15, true};
        if (importance != nullptr) {
            spread(kSixteen, row, importance + kSixteen * s, mean, w);
            grids = {-0.9f, 0.05f, 36, false};
        } else {
            for (uint32_t i = 0; i < kSixteen; ++i) w[i] = magnitude(row[i]);
        }
        total[s] = sum_of(kSixteen, w);
        scales[s] = fit_with_minimum(kSixteen, 3, row, w, grids, q + kSixteen * s, &least[s]);
    }
    if (importance != nullptr) {
        y->d = float_to_half(fit_scales(kSubBlocks, 15, scales, total, scale_codes));
        y->dmin = float_to_half(fit_scales(kSubBlocks, 15, least, total, least_codes));
    } else {
        const auto coded = [](const float *values, uint8_t *codes) {
            float most = 0.0f;
            for (uint32_t s = 0; s < kSubBlocks; ++s) most = values[s] > most ? values[s] : most;
            const float steps = most > 0.0f ? 15.0f / most : 0.0f;
            for (uint32_t s = 0; s < kSubBlocks; ++s) codes[s] = static_cast<uint8_t>(nearest_whole(steps * values[s]));
            return float_to_half(most / 15.0f);
        };
        y->d = coded(scales, scale_codes);
        y->dmin = coded(least, least_codes);
    }
    const float d = half_to_float(y->d), dmin = half_to_float(y->dmin);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        y->scales[s] = static_cast<uint8_t>(scale_codes[s] | least_codes[s] << 4);
        const float scale = d * static_cast<float>(scale_codes[s]);
        if (scale == 0.0f) continue;
        const float base = dmin * static_cast<float>(least_codes[s]);
        for (uint32_t i = kSixteen * s; i < kSixteen * (s + 1); ++i)
            q[i] = static_cast<uint8_t>(within(0, nearest_whole((x[i] + base) / scale), 3));
    }
    pack_pairs_of_bits(q, y->qs);
}

void read_q2_k(const BlockQ2_K &block, float *dst) {
    const float d = half_to_float(block.d), dmin = half_to_float(block.dmin);
    for (uint32_t i = 0; i < kSuperBlockLength; ++i) {
        const uint8_t codes = block.scales[i / kSixteen];
        const float scale = d * static_cast<float>(codes & 15), least = dmin * static_cast<float>(codes >> 4);
        dst[i] = scale * static_cast<float>(pair_of_bits(block.qs, i)) - least;
    }
}

// ---- Q3_K
// ---------------------------------------------------------------------------------------------------------------

int32_t scale_q3_k(const BlockQ3_K &block, uint32_t s) {
    const uint32_t low = s < 8 ? block.scales[s] & 15u : block.scales[s - 8] >> 4;
    return static_cast<int32_t>(low | (block.scales[8 + s % 4] >> (2 * (s / 4)) & 3u) << 4) - 32;
}

void write_q3_k(const float *x, const float *importance, BlockQ3_K *y) {
    uint8_t q[kSuperBlockLength], codes[kSubBlocks];
    float scales[kSubBlocks], w[kSixteen], total[kSubBlocks];
    const float mean = importance != nullptr ? 2.0f * mean_square(x, kSuperBlockLength) : 0.0f;
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const float *row = x + kSixteen * s;
        if (importance == nullptr) {
            scales[s] = fit_three_bits(kSixteen, row, q + kSixteen * s);
            continue;
        }
        spread(kSixteen, row, importance + kSixteen * s, mean, w);
        total[s] = sum_of(kSixteen, w);
        scales[s] = fit_symmetric(kSixteen, 4, row, w, q + kSixteen * s);
    }
    if (importance != nullptr) {
        y->d = float_to_half(fit_symmetric(kSubBlocks, 32, scales, total, codes));
    } else {
        const float most = furthest(kSubBlocks, scales);
        const float steps = most != 0.0f ? -32.0f / most : 0.0f;
        for (uint32_t s = 0; s < kSubBlocks; ++s) {
            const int8_t whole = static_cast<int8_t>(nearest_whole(steps * scales[s]));
            codes[s] = most != 0.0f ? static_cast<uint8_t>(within(-32, whole, 31) + 32) : 0;
        }
        y->d = float_to_half(most != 0.0f ? 1.0f / steps : 0.0f);
    }
    memset(y->scales, 0, sizeof y->scales);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        uint8_t *low = &y->scales[s % 8], *high = &y->scales[8 + s % 4];
        *low = static_cast<uint8_t>(*low | (codes[s] & 15) << (s < 8 ? 0 : 4));
        *high = static_cast<uint8_t>(*high | codes[s] >> 4 << (2 * (s / 4)));
    }
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const float scale = half_to_float(y->d) * static_cast<float>(scale_q3_k(*y, s));
        if (scale == 0.0f) continue;
        for (uint32_t i = kSixteen * s; i < kSixteen * (s + 1); ++i)
            q[i] = static_cast<uint8_t>(within(-4, nearest_whole(x[i] / scale), 3) + 4);
    }
    memset(y->hmask, 0, sizeof y->hmask);
    for (uint32_t i = 0; i < kSuperBlockLength; ++i)
        y->hmask[i % 32] = static_cast<uint8_t>(y->hmask[i % 32] | (q[i] >> 2 & 1) << (i / 32));
    pack_pairs_of_bits(q, y->qs);
}

void read_q3_k(const BlockQ3_K &block, float *dst) {
    const float d = half_to_float(block.d);
    for (uint32_t i = 0; i < kSuperBlockLength; ++i) {
        const uint32_t high = block.hmask[i % 32] >> (i / 32) & 1u;
        const int32_t q = static_cast<int32_t>(pair_of_bits(block.qs, i) | high << 2) - 4;
        dst[i] = d * static_cast<float>(scale_q3_k(block, i / kSixteen)) * static_cast<float>(q);
    }
}

// ---- Q6_K
// ---------------------------------------------------------------------------------------------------------------

void write_q6_k(const float *x, const float *importance, BlockQ6_K *y) {
    uint8_t q[kSuperBlockLength];
    float scales[kSubBlocks];
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const uint32_t at = kSixteen * s;
        scales[s] = fit_symmetric(kSixteen, 32, x + at, importance != nullptr ? importance + at : nullptr, q + at);
    }
    const float most = furthest(kSubBlocks, scales);
    memset(y, 0, sizeof *y);
    if (magnitude(most) < kNothing) return;
    const float steps = -128.0f / most;
    y->d = float_to_half(1.0f / steps);
    const float d = half_to_float(y->d);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const int32_t whole = nearest_whole(steps * scales[s]);
        y->scales[s] = static_cast<int8_t>(whole > 127 ? 127 : whole);
        const float scale = d * static_cast<float>(y->scales[s]);
        if (scale == 0.0f) continue;
        for (uint32_t i = kSixteen * s; i < kSixteen * (s + 1); ++i)
            q[i] = static_cast<uint8_t>(within(-32, nearest_whole(x[i] / scale), 31) + 32);
    }
    for (uint32_t half = 0; half < 2; ++half)
        for (uint32_t j = 0; j < 32; ++j) {
            const uint8_t *at = q + 128 * half + j;
            uint8_t *ql = y->ql + 64 * half + j;
            ql[0] = static_cast<uint8_t>((at[0] & 15) | (at[64] & 15) << 4);
            ql[32] = static_cast<uint8_t>((at[32] & 15) | (at[96] & 15) << 4);
            y->qh[32 * half + j] =
                static_cast<uint8_t>(at[0] >> 4 | at[32] >> 4 << 2 | at[64] >> 4 << 4 | at[96] >> 4 << 6);
        }
}

void read_q6_k(const BlockQ6_K &block, float *dst) {
    const float d = half_to_float(block.d);
    for (uint32_t i = 0; i < kSuperBlockLength; ++i) {
        const uint32_t half = i / 128, j = i % 128;
        const uint32_t low = block.ql[64 * half + j % 64] >> (j / 64 * 4) & 15u;
        const uint32_t high = block.qh[32 * half + j % 32] >> (j / 32 * 2) & 3u;
        const float scale = d * static_cast<float>(block.scales[i / kSixteen]);
        dst[i] = scale * static_cast<float>(static_cast<int32_t>(low | high << 4) - 32);
    }
}

// ---- the others, weighted
// -----------------------------------------------------------------------------------------------

constexpr Grids kWeighted = {-0.9f, 0.05f, 36, false};

// Q4_K and Q5_K: see BlockQ4_K.
template <class Block>
void write_weighted_k(const float *x, const float *importance, Block *y) {
    constexpr bool kFive = sizeof(Block) == sizeof(BlockQ5_K);
    constexpr int32_t kMost = kFive ? 31 : 15;
    uint8_t q[kSuperBlockLength], scale_codes[kPairs], least_codes[kPairs];
    float scales[kPairs], least[kPairs], total[kPairs], w[kBlockLength];
    const float mean = 2.0f * mean_square(x, kSuperBlockLength);
    for (uint32_t s = 0; s < kPairs; ++s) {
        const uint32_t at = kBlockLength * s;
        spread(kBlockLength, x + at, importance + at, mean, w);
        total[s] = sum_of(kBlockLength, w);
        scales[s] = fit_with_minimum(kBlockLength, kMost, x + at, w, kWeighted, q + at, &least[s]);
    }
    y->d = float_to_half(fit_scales(kPairs, 63, scales, total, scale_codes));
    y->dmin = float_to_half(fit_scales(kPairs, 63, least, total, least_codes));
    const float d = half_to_float(y->d), dmin = half_to_float(y->dmin);
    for (uint32_t s = 0; s < kPairs; ++s) {
        const uint32_t a = scale_codes[s], b = least_codes[s];
        if (s < 4) {
            y->scales[s] = static_cast<uint8_t>(a);
            y->scales[s + 4] = static_cast<uint8_t>(b);
        } else {
            y->scales[s + 4] = static_cast<uint8_t>((a & 15u) | (b & 15u) << 4);
            y->scales[s - 4] = static_cast<uint8_t>(y->scales[s - 4] | a >> 4 << 6);
            y->scales[s] = static_cast<uint8_t>(y->scales[s] | b >> 4 << 6);
        }
        const float scale = d * static_cast<float>(a), base = dmin * static_cast<float>(b);
        if (scale == 0.0f) continue;
        for (uint32_t i = kBlockLength * s; i < kBlockLength * (s + 1); ++i)
            q[i] = static_cast<uint8_t>(within(0, nearest_whole((x[i] + base) / scale), kMost));
    }
    for (uint32_t pair = 0; pair < kPairs / 2; ++pair)
        for (uint32_t j = 0; j < kBlockLength; ++j) {
            const uint8_t *at = q + 2 * kBlockLength * pair + j;
            y->qs[kBlockLength * pair + j] = static_cast<uint8_t>((at[0] & 15) | (at[kBlockLength] & 15) << 4);
        }
    if constexpr (kFive) {
        memset(y->qh, 0, sizeof y->qh);
        for (uint32_t i = 0; i < kSuperBlockLength; ++i)
            y->qh[i % 32] = static_cast<uint8_t>(y->qh[i % 32] | (q[i] >> 4 & 1) << (i / 32));
    }
}

// Nibbles, and fifth bits where the block has them.
template <class Block>
void pack_block(const uint8_t *q, Block *y) {
    constexpr uint32_t kHalf = kBlockLength / 2;
    for (uint32_t j = 0; j < kHalf; ++j) y->qs[j] = static_cast<uint8_t>((q[j] & 15) | (q[j + kHalf] & 15) << 4);
    if constexpr (sizeof(Block) == sizeof(BlockQ5_0) || sizeof(Block) == sizeof(BlockQ5_1)) {
        uint32_t high = 0;
        for (uint32_t j = 0; j < kBlockLength; ++j) high |= (q[j] >> 4 & 1u) << j;
        memcpy(y->qh, &high, sizeof high);
    }
}

// Q4_0 and Q5_0. `mean` is that of the whole row.
template <class Block>
void write_weighted_symmetric(const float *x, const float *importance, float mean, Block *y) {
    float w[kBlockLength];
    uint8_t q[kBlockLength];
    spread(kBlockLength, x, importance, mean, w);
    y->d = float_to_half(fit_symmetric(kBlockLength, sizeof(Block) == sizeof(BlockQ5_0) ? 16 : 8, x, w, q));
    pack_block(q, y);
}

// Q4_1 and Q5_1, likewise.
template <class Block>
void write_weighted_minimum(const float *x, const float *importance, float mean, Block *y) {
    float w[kBlockLength], least;
    uint8_t q[kBlockLength];
    spread(kBlockLength, x, importance, mean, w);
    const int32_t most = sizeof(Block) == sizeof(BlockQ5_1) ? 31 : 15;
    y->d = float_to_half(fit_with_minimum(kBlockLength, most, x, w, kWeighted, q, &least));
    y->m = float_to_half(-least);
    pack_block(q, y);
}

}  // namespace

bool quantize_row_q2_k(const float *src, void *dst, uint64_t count) {
    return write_each<kSuperBlockLength, BlockQ2_K>(src, nullptr, dst, count, write_q2_k);
}

bool quantize_row_q3_k(const float *src, void *dst, uint64_t count) {
    return write_each<kSuperBlockLength, BlockQ3_K>(src, nullptr, dst, count, write_q3_k);
}

bool quantize_row_q6_k(const float *src, void *dst, uint64_t count) {
    return write_each<kSuperBlockLength, BlockQ6_K>(src, nullptr, dst, count, write_q6_k);
}

void dequantize_row_q2_k(const void *src, float *dst, uint64_t count) {
    const BlockQ2_K *blocks = static_cast<const BlockQ2_K *>(src);
    for (uint64_t i = 0; i < count / kSuperBlockLength; ++i) read_q2_k(blocks[i], dst + i * kSuperBlockLength);
}

void dequantize_row_q3_k(const void *src, float *dst, uint64_t count) {
    const BlockQ3_K *blocks = static_cast<const BlockQ3_K *>(src);
    for (uint64_t i = 0; i < count / kSuperBlockLength; ++i) read_q3_k(blocks[i], dst + i * kSuperBlockLength);
}

void dequantize_row_q6_k(const void *src, float *dst, uint64_t count) {
    const BlockQ6_K *blocks = static_cast<const BlockQ6_K *>(src);
    for (uint64_t i = 0; i < count / kSuperBlockLength; ++i) read_q6_k(blocks[i], dst + i * kSuperBlockLength);
}

bool quantize_row_weighted(int32_t type, const float *src, const float *importance, void *dst, uint64_t count) {
    constexpr uint32_t kLong = kSuperBlockLength, kShort = kBlockLength;
    if (importance == nullptr) return quantize_row(type, src, dst, count);
    const float mean = has_super_blocks(type) ? 0.0f : mean_square(src, count);
    const auto symmetric = [mean](const float *x, const float *w, auto *y) { write_weighted_symmetric(x, w, mean, y); };
    const auto minimum = [mean](const float *x, const float *w, auto *y) { write_weighted_minimum(x, w, mean, y); };
    switch (type) {
        case kQ4_0: return write_each<kShort, BlockQ4_0>(src, importance, dst, count, symmetric);
        case kQ5_0: return write_each<kShort, BlockQ5_0>(src, importance, dst, count, symmetric);
        case kQ4_1: return write_each<kShort, BlockQ4_1>(src, importance, dst, count, minimum);
        case kQ5_1: return write_each<kShort, BlockQ5_1>(src, importance, dst, count, minimum);
        case kQ2_K: return write_each<kLong, BlockQ2_K>(src, importance, dst, count, write_q2_k);
        case kQ3_K: return write_each<kLong, BlockQ3_K>(src, importance, dst, count, write_q3_k);
        case kQ4_K: return write_each<kLong, BlockQ4_K>(src, importance, dst, count, write_weighted_k<BlockQ4_K>);
        case kQ5_K: return write_each<kLong, BlockQ5_K>(src, importance, dst, count, write_weighted_k<BlockQ5_K>);
        case kQ6_K: return write_each<kLong, BlockQ6_K>(src, importance, dst, count, write_q6_k);
        case kIQ4_NL:
        case kIQ4_XS:
        case kIQ3_XXS:
        case kIQ3_S: return quantize_row_iq(type, src, importance, dst, count);
        default: return quantize_row(type, src, dst, count);
    }
}

}  // namespace rwkvflow

// The IQ types: four bits along a curve (IQ4_NL, IQ4_XS), or points of a grid with signs apart (IQ3_XXS, IQ3_S).
//
// Byte for byte what llama.cpp's quantizer writes (quantize_row_iq4_nl_impl, iq3_xxs_impl and iq3_s_impl of
// ggml-quants.c).
#include <pthread.h>

#include "quantize/iq_tables.h"
#include "quantize/quantize.h"
#include "quantize/searches.h"
#include "quantize/weighted.h"

namespace rwkvflow {
namespace {

constexpr uint32_t kSubBlocks = kSuperBlockLength / kBlockLength;
constexpr int32_t kTries = 7;

// ---- the curve
// ----------------------------------------------------------------------------------------------------------

// The code whose value is nearest; of two that are as near the larger.
uint8_t nearest_code(float x) {
    if (x <= static_cast<float>(kCurve[0])) return 0;
    if (x >= static_cast<float>(kCurve[15])) return 15;
    uint8_t above = 1;
    while (x >= static_cast<float>(kCurve[above])) ++above;
    const float below = static_cast<float>(kCurve[above - 1]);
    return x - below < static_cast<float>(kCurve[above]) - x ? static_cast<uint8_t>(above - 1) : above;
}

void count_by(const float *x, const float *importance, float mean, float *w) {
    if (importance != nullptr) return spread(kBlockLength, x, importance, mean, w);
    for (uint32_t i = 0; i < kBlockLength; ++i) w[i] = x[i] * x[i];
}

// The scale d of x ~ d * kCurve[code].
float fit_curve(const float *x, const float *w) {
    const float peak = furthest(kBlockLength, x);
    if (magnitude(peak) < kNothing) return 0.0f;
    float scale = 0.0f, best = 0.0f;
    for (int32_t turn = -kTries - 1; turn <= kTries; ++turn) {
        // First the grid on which the peak is the curve's end, as a reciprocal of a quotient; then its neighbours.
        const bool first = turn == -kTries - 1;
        const float end = static_cast<float>(kCurve[0]);
        const float steps = first ? 1.0f / (-peak / end) : static_cast<float>(turn + kCurve[0]) / peak;
        Moments sums;
        for (uint32_t i = 0; i < kBlockLength; ++i)
            sums.add_product(w[i], static_cast<float>(kCurve[nearest_code(steps * x[i])]), x[i]);
        if (!first && !sums.beats(best)) continue;
        scale = sums.qq > 0.0f ? sums.xq / sums.qq : 0.0f;
        best = scale * sums.xq;
    }
    return scale;
}

void pack_nibbles(const uint8_t *q, uint8_t *qs) {
    for (uint32_t j = 0; j < kBlockLength / 2; ++j) qs[j] = static_cast<uint8_t>(q[j] | q[j + kBlockLength / 2] << 4);
}

void write_iq4_nl(const float *x, const float *importance, BlockIQ4_NL *y) {
    float w[kBlockLength];
    count_by(x, importance, mean_square(x, kBlockLength) * 2.0f, w);
    const float scale = fit_curve(x, w);
    y->d = float_to_half(scale);
    const float steps = scale != 0.0f ? 1.0f / scale : 0.0f;
    uint8_t q[kBlockLength];
    for (uint32_t i = 0; i < kBlockLength; ++i) q[i] = nearest_code(steps * x[i]);
    pack_nibbles(q, y->qs);
}

void write_iq4_xs(const float *x, const float *importance, BlockIQ4_XS *y) {
    float scales[kSubBlocks], w[kBlockLength];
    const float mean = mean_square(x, kSuperBlockLength) * 2.0f;
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const uint32_t at = kBlockLength * s;
        count_by(x + at, importance != nullptr ? importance + at : nullptr, mean, w);
        scales[s] = fit_curve(x + at, w);
    }
    const float d = -furthest(kSubBlocks, scales) / 32.0f, id = d != 0.0f ? 1.0f / d : 0.0f;
    memset(y, 0, sizeof *y);
    y->d = float_to_half(d);
    uint32_t high = 0;
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const int32_t whole = within(-32, nearest_whole(id * scales[s]), 31);
        const float scale = d * static_cast<float>(whole), steps = scale != 0.0f ? 1.0f / scale : 0.0f;
        uint8_t q[kBlockLength];
        for (uint32_t i = 0; i < kBlockLength; ++i) q[i] = nearest_code(steps * x[kBlockLength * s + i]);
        pack_nibbles(q, y->qs + kBlockLength / 2 * s);
        const uint32_t code = static_cast<uint32_t>(whole + 32);
        y->scales_l[s / 2] = static_cast<uint8_t>(y->scales_l[s / 2] | (code & 15u) << (s % 2 * 4));
        high |= code >> 4 << (2 * s);
    }
    y->scales_h = static_cast<uint16_t>(high);
}

void read_iq4(const uint8_t *qs, float scale, float *dst) {
    for (uint32_t j = 0; j < kBlockLength / 2; ++j) {
        dst[j] = scale * static_cast<float>(kCurve[qs[j] & 15]);
        dst[j + kBlockLength / 2] = scale * static_cast<float>(kCurve[qs[j] >> 4]);
    }
}

// ---- the grids
// ----------------------------------------------------------------------------------------------------------

constexpr uint32_t kCells = 4096;    // four levels of three bits
constexpr uint32_t kListed = 32768;  // room for all neighbours: the two grids have 23,000 and 28,000, lengths included
constexpr int32_t kLevels = 8;
constexpr uint32_t kFours = kBlockLength / 4;

// A grid: of each cell the index of its point, or where its list of neighbours begins.
struct Grid {
    const uint16_t *points;
    uint32_t count, distances;  // neighbours are the points of so many smallest distances
    int32_t place[kCells];      // index, or -1 - begin
    uint16_t lists[kListed];    // number, then the points by distance and index
};

Grid xxs_grid = {kPointsIQ3_XXS, 256, 2, {}, {}}, s_grid = {kPointsIQ3_S, 512, 3, {}, {}};
pthread_once_t grids_once = PTHREAD_ONCE_INIT;

uint32_t level(uint32_t cell, uint32_t i) { return cell >> (3 * i) & 7u; }

// In a cell's levels, doubled as those of files: the square of a difference of levels is four times this.
uint32_t distance(uint32_t a, uint32_t b) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 4; ++i) {
        const int32_t off = static_cast<int32_t>(level(a, i)) - static_cast<int32_t>(level(b, i));
        sum += static_cast<uint32_t>(off * off);
    }
    return sum;
}

void fill(Grid *grid) {
    constexpr uint32_t kFarthest = 4 * 7 * 7;
    for (uint32_t cell = 0; cell < kCells; ++cell) grid->place[cell] = -1;
    for (uint32_t i = 0; i < grid->count; ++i) grid->place[grid->points[i]] = static_cast<int32_t>(i);
    uint32_t at = 0;
    for (uint32_t cell = 0; cell < kCells; ++cell) {
        if (grid->place[cell] >= 0) continue;
        const uint32_t begin = at++;
        uint32_t found = 0;
        for (uint32_t far = 0; far <= kFarthest && found < grid->distances; ++far) {
            const uint32_t before = at;
            for (uint32_t i = 0; i < grid->count; ++i)
                if (distance(cell, grid->points[i]) == far) grid->lists[at++] = static_cast<uint16_t>(i);
            found += at != before;
        }
        grid->lists[begin] = static_cast<uint16_t>(at - begin - 1);
        grid->place[cell] = -1 - static_cast<int32_t>(begin);
    }
}

void fill_grids() {
    fill(&xxs_grid);
    fill(&s_grid);
}

uint32_t cell_of(const uint8_t *levels) {
    return levels[0] | static_cast<uint32_t>(levels[1]) << 3 | static_cast<uint32_t>(levels[2]) << 6 |
           static_cast<uint32_t>(levels[3]) << 9;
}

void levels_of(uint32_t cell, uint8_t *levels) {
    for (uint32_t i = 0; i < 4; ++i) levels[i] = static_cast<uint8_t>(level(cell, i));
}

// Of a cell that is no point: the neighbour of least weighted squares at this scale, whose levels are set.
void take_neighbour(const Grid &grid, uint32_t cell, const float *x, const float *w, float scale, uint8_t *levels) {
    const uint16_t *list = grid.lists + (-1 - grid.place[cell]);
    float best = 3.402823466e+38f;
    uint32_t found = list[1];
    for (uint32_t n = 1; n <= list[0]; ++n) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < 4; ++i) {
            const float off = scale * static_cast<float>(2 * level(grid.points[list[n]], i) + 1) - x[i];
            sum += w[i] * off * off;
        }
        if (sum < best) {
            best = sum;
            found = list[n];
        }
    }
    levels_of(grid.points[found], levels);
}

void nearest_levels(const float *x, float steps, uint8_t *levels) {
    for (uint32_t i = 0; i < 4; ++i)
        levels[i] = static_cast<uint8_t>(within(0, nearest_whole(0.5f * (steps * x[i] - 1.0f)), kLevels - 1));
}

Moments moments_of(const float *x, const float *w, const uint8_t *levels) {
    Moments sums;
    for (uint32_t i = 0; i < kBlockLength; ++i) sums.add(w[i], x[i], static_cast<float>(2 * levels[i] + 1));
    return sums;
}

// x ~ scale * (2 level + 1), levels of each four a point of the grid. `turns`: scales tried to each side; `again`:
// whether fours that are on the grid are chosen anew for the last scale, too; `off`: what a four counts as before any
// scale was better.
float fit_grid(const Grid &grid, int32_t turns, bool again, const float *x, const float *w, float most,
               uint8_t *levels) {
    constexpr float kTop = static_cast<float>(2 * kLevels - 1);
    float root[kBlockLength], best = 0.0f, scale = most / kTop;
    for (uint32_t i = 0; i < kBlockLength; ++i) root[i] = __builtin_sqrtf(w[i]);
    bool on[kFours], on_trial[kFours];
    for (uint32_t k = 0; k < kFours; ++k) on[k] = !again;
    uint8_t trial[kBlockLength];
    for (int32_t turn = -turns; turn <= turns; ++turn) {
        const float steps = (kTop + static_cast<float>(turn) * 0.2f) / most, this_scale = 1.0f / steps;
        for (uint32_t k = 0; k < kFours; ++k) {
            nearest_levels(x + 4 * k, steps, trial + 4 * k);
            const uint32_t cell = cell_of(trial + 4 * k);
            on_trial[k] = grid.place[cell] >= 0;
            if (!on_trial[k]) take_neighbour(grid, cell, x + 4 * k, root + 4 * k, this_scale, trial + 4 * k);
        }
        const Moments sums = moments_of(x, w, trial);
        if (!sums.beats(best)) continue;
        scale = sums.xq / sums.qq;
        best = scale * sums.xq;
        memcpy(levels, trial, sizeof trial);
        memcpy(on, on_trial, sizeof on);
    }
    uint32_t missing = 0;
    for (uint32_t k = 0; k < kFours; ++k) missing += !on[k];
    if (missing == 0 || !(scale > 0.0f)) return scale;
    const float steps = 1.0f / scale;
    for (uint32_t k = 0; k < kFours; ++k) {
        if (on[k] && !again) continue;
        nearest_levels(x + 4 * k, steps, levels + 4 * k);
        const uint32_t cell = cell_of(levels + 4 * k);
        if (grid.place[cell] < 0) take_neighbour(grid, cell, x + 4 * k, root + 4 * k, scale, levels + 4 * k);
    }
    const Moments sums = moments_of(x, w, levels);
    return sums.qq > 0.0f ? sums.xq / sums.qq : scale;
}

// Four bits a sub-block for the scales: 2 code + 1 times d.
uint32_t scale_code(float id, float scale) {
    return static_cast<uint32_t>(within(0, nearest_whole(0.5f * (id * scale - 1.0f)), 15));
}

float largest(uint32_t n, const float *x) {
    float most = x[0];
    for (uint32_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

void write_iq3_xxs(const float *x, const float *importance, BlockIQ3_XXS *y) {
    const float mean = 2.0f * mean_square(x, kSuperBlockLength);
    float scales[kSubBlocks], w[kBlockLength], rest[kBlockLength];
    uint32_t words[kSubBlocks] = {};
    uint8_t indices[kSuperBlockLength / 4] = {};
    memset(y, 0, sizeof *y);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const float *row = x + kBlockLength * s;
        count_by(row, importance != nullptr ? importance + kBlockLength * s : nullptr, mean, w);
        uint8_t signs[4];
        for (uint32_t k = 0; k < 4; ++k) {
            uint32_t bits = 0, flips = 0, least = 0;
            float smallest = 0.0f;
            for (uint32_t i = 0; i < 8; ++i) {
                const float value = row[8 * k + i];
                const bool negative = !(value >= 0.0f);
                rest[8 * k + i] = negative ? -value : value;
                bits |= static_cast<uint32_t>(negative) << i;
                flips += negative;
                const float counts = w[8 * k + i] * value * value;
                if (i == 0 || counts < smallest) {
                    smallest = counts;
                    least = i;
                }
            }
            if (flips % 2 !=
                0) {  // the eighth sign makes the number even: the weight that counts least takes the wrong one
                rest[8 * k + least] = -rest[8 * k + least];
                bits ^= 1u << least;
            }
            signs[k] = static_cast<uint8_t>(bits & 127u);
        }
        const float most = largest(kBlockLength, rest);
        scales[s] = 0.0f;
        if (most < 1e-8f) continue;
        uint8_t levels[kBlockLength] = {};
        float scale = fit_grid(xxs_grid, 15, false, rest, w, most, levels);
        if (scale < 0.0f) {
            scale = -scale;
            for (uint8_t &bits : signs) bits = static_cast<uint8_t>(~bits & 127);
        }
        for (uint32_t k = 0; k < kFours; ++k)
            indices[kFours * s + k] = static_cast<uint8_t>(xxs_grid.place[cell_of(levels + 4 * k)]);
        for (uint32_t k = 0; k < 4; ++k) words[s] |= static_cast<uint32_t>(signs[k]) << (7 * k);
        scales[s] = scale;
    }
    const float top = largest(kSubBlocks, scales);
    if (top == 0.0f) return;
    const float d = top / 31.0f, id = 1.0f / d;
    y->d = float_to_half(d * 1.0125f);
    for (uint32_t s = 0; s < kSubBlocks; ++s) words[s] |= scale_code(id, scales[s]) << 28;
    memcpy(y->qs, indices, sizeof indices);
    memcpy(y->qs + sizeof indices, words, sizeof words);
}

void write_iq3_s(const float *x, const float *importance, BlockIQ3_S *y) {
    const float mean = 2.0f * mean_square(x, kSuperBlockLength);
    float scales[kSubBlocks], w[kBlockLength], rest[kBlockLength];
    memset(y, 0, sizeof *y);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const float *row = x + kBlockLength * s;
        count_by(row, importance != nullptr ? importance + kBlockLength * s : nullptr, mean, w);
        uint8_t signs[4] = {};
        for (uint32_t i = 0; i < kBlockLength; ++i) {
            const bool negative = !(row[i] >= 0.0f);
            rest[i] = negative ? -row[i] : row[i];
            signs[i / 8] = static_cast<uint8_t>(signs[i / 8] | static_cast<uint32_t>(negative) << (i % 8));
        }
        const float most = largest(kBlockLength, rest);
        scales[s] = 0.0f;
        if (most == 0.0f) continue;
        uint8_t levels[kBlockLength] = {};
        float scale = fit_grid(s_grid, 9, true, rest, w, most, levels);
        if (scale < 0.0f) {
            scale = -scale;
            for (uint8_t &bits : signs) bits = static_cast<uint8_t>(~bits);
        }
        for (uint32_t k = 0; k < kFours; ++k) {
            const uint32_t index = static_cast<uint32_t>(s_grid.place[cell_of(levels + 4 * k)]);
            y->qs[kFours * s + k] = static_cast<uint8_t>(index & 255u);
            y->qh[s] = static_cast<uint8_t>(y->qh[s] | index >> 8 << k);
        }
        memcpy(y->signs + 4 * s, signs, sizeof signs);
        scales[s] = scale;
    }
    const float top = largest(kSubBlocks, scales);
    if (top == 0.0f) return;
    const float d = top / 31.0f, id = 1.0f / d;
    y->d = float_to_half(d * 1.033f);
    for (uint32_t s = 0; s < kSubBlocks; ++s)
        y->scales[s / 2] = static_cast<uint8_t>(y->scales[s / 2] | scale_code(id, scales[s]) << (s % 2 * 4));
}

// The eighth sign of seven: their number is even.
uint32_t all_signs(uint32_t seven) { return seven | static_cast<uint32_t>(__builtin_parity(seven)) << 7; }

float signed_by(uint32_t signs, uint32_t i, float value) { return signs >> i & 1u ? -value : value; }

void read_iq3_xxs(const BlockIQ3_XXS &block, float *dst) {
    const float d = half_to_float(block.d);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        uint32_t word;
        memcpy(&word, block.qs + kSuperBlockLength / 4 + 4 * s, sizeof word);
        const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
        for (uint32_t i = 0; i < kBlockLength; ++i) {
            const uint32_t signs = all_signs(word >> (7 * (i / 8)) & 127u);
            const uint32_t point = kPointsIQ3_XXS[block.qs[kFours * s + i / 4]];
            const float value = static_cast<float>(kLevelsIQ3_XXS[level(point, i % 4)]);
            dst[kBlockLength * s + i] = signed_by(signs, i % 8, scale * value);
        }
    }
}

void read_iq3_s(const BlockIQ3_S &block, float *dst) {
    const float d = half_to_float(block.d);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const uint32_t code = block.scales[s / 2] >> (s % 2 * 4) & 15u;
        const float scale = d * static_cast<float>(1 + 2 * code);
        for (uint32_t i = 0; i < kBlockLength; ++i) {
            const uint32_t k = i / 4, index = block.qs[kFours * s + k] | (block.qh[s] >> k & 1u) << 8;
            const float value = static_cast<float>(2 * level(kPointsIQ3_S[index], i % 4) + 1);
            dst[kBlockLength * s + i] = signed_by(block.signs[4 * s + i / 8], i % 8, scale * value);
        }
    }
}

void read_iq4_xs(const BlockIQ4_XS &block, float *dst) {
    const float d = half_to_float(block.d);
    for (uint32_t s = 0; s < kSubBlocks; ++s) {
        const uint32_t low = block.scales_l[s / 2] >> (s % 2 * 4) & 15u, high = block.scales_h >> (2 * s) & 3u;
        const float scale = d * static_cast<float>(static_cast<int32_t>(low | high << 4) - 32);
        read_iq4(block.qs + kBlockLength / 2 * s, scale, dst + kBlockLength * s);
    }
}

}  // namespace

bool quantize_row_iq(int32_t type, const float *src, const float *importance, void *dst, uint64_t count) {
    constexpr uint32_t kLong = kSuperBlockLength;
    switch (type) {
        case kIQ4_NL: return write_each<kBlockLength, BlockIQ4_NL>(src, importance, dst, count, write_iq4_nl);
        case kIQ4_XS: return write_each<kLong, BlockIQ4_XS>(src, importance, dst, count, write_iq4_xs);
        case kIQ3_XXS:
        case kIQ3_S: break;
        default: return false;
    }
    pthread_once(&grids_once, fill_grids);
    if (type == kIQ3_XXS) return write_each<kLong, BlockIQ3_XXS>(src, importance, dst, count, write_iq3_xxs);
    return write_each<kLong, BlockIQ3_S>(src, importance, dst, count, write_iq3_s);
}

void dequantize_row_iq(int32_t type, const void *src, float *dst, uint64_t count) {
    const uint32_t length = block_length(type), bytes = block_bytes(type);
    const uint8_t *at = static_cast<const uint8_t *>(src);
    for (uint64_t i = 0; i < count / length; ++i, at += bytes, dst += length) {
        switch (type) {
            case kIQ4_NL: {
                const BlockIQ4_NL &block = *reinterpret_cast<const BlockIQ4_NL *>(at);
                read_iq4(block.qs, half_to_float(block.d), dst);
                break;
            }
            case kIQ4_XS: read_iq4_xs(*reinterpret_cast<const BlockIQ4_XS *>(at), dst); break;
            case kIQ3_XXS: read_iq3_xxs(*reinterpret_cast<const BlockIQ3_XXS *>(at), dst); break;
            default: read_iq3_s(*reinterpret_cast<const BlockIQ3_S *>(at), dst); break;
        }
    }
}

}  // namespace rwkvflow

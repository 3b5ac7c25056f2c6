// A row of a quantized matrix with one token, for AVX2, AVX-VNNI and AVX-512. Eight blocks are a group: the sums of their bytes are
// gathered in one register, and scaled there. Of inputs the first halves of kTogether blocks, 16 bytes each, stand side by side,
// then their second halves; scales and sums are in the order of lanes.
//
// A file that includes this has defined kTogether, block_of, the type Wide of a register of floats, zero, add_group and sum_of.
#pragma once

namespace rwkvflow {
namespace {

// A group of inputs: 256 bytes of q, kLanes of 16 floats of d and of s, three times kLanes of 48 words of n (see kOffsets).
struct Group {
    const int8_t *q;
    const float *d, *s;
    const int32_t *n;
};

// The running sums and a whole group more.
template <int TYPE>
inline Wide add_group(Wide sums, const uint8_t *w, const Group &x);

inline void place_row(const Activations &x, uint32_t token, size_t block, const int8_t bytes[32], float d, int32_t sum, float s) {
    const size_t first = size_t{token} * x.stride, group = first / 16 + block / 8 * 16;
    int8_t *q = x.q + first + block / kTogether * kTogether * 32 + block % kTogether * 16;
    memcpy(q, bytes, 16);
    memcpy(q + 16 * kTogether, bytes + 16, 16);
    for (size_t lane = 0; lane < kLanes; ++lane) {
        if (block_of(lane) != block % 8) continue;
        x.d[group + lane] = d;
        x.s[group + lane] = s;
        for (size_t i = 0; i < 3; ++i) x.n[group * 3 + i * 16 + lane] = -sum * kOffsets[i];
    }
}

// The last group of a row, of less than eight blocks: those that are missing add nothing, whatever their inputs are.
template <int TYPE>
__attribute__((noinline)) Wide add_last_group(Wide sums, const uint8_t *w, const Group &x, size_t blocks) {
    uint8_t padded[8 * size_t{Block<TYPE>::bytes}] = {};
    float d[kLanes], s[kLanes];
    memcpy(padded, w, blocks * Block<TYPE>::bytes);
    for (size_t lane = 0; lane < kLanes; ++lane) {
        d[lane] = block_of(lane) < blocks ? x.d[lane] : 0.0f;
        s[lane] = block_of(lane) < blocks ? x.s[lane] : 0.0f;
    }
    return add_group<TYPE>(sums, padded, {x.q, d, s, x.n});
}

template <int TYPE>
inline float row_product(const uint8_t *w, uint32_t cols, const Activations &x) {
    constexpr size_t bytes = (Block<TYPE>::super ? size_t{1} : size_t{8}) * Block<TYPE>::bytes;
    Wide sums = zero();
    Group in = {x.q, x.d, x.s, x.n};
    uint32_t blocks = cols / 32;
    for (; blocks >= 8; blocks -= 8, w += bytes) {
        for (size_t i = 0; i < bytes; i += 64) prefetch(w + i);
        sums = add_group<TYPE>(sums, w, in);
        in = {in.q + 256, in.d + 16, in.s + 16, in.n + 48};
    }
    if constexpr (!Block<TYPE>::super)
        if (blocks != 0) sums = add_last_group<TYPE>(sums, w, in, blocks);
    return sum_of(sums);
}

}  // namespace
}  // namespace rwkvflow

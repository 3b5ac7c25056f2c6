// What choosing the tokens of one text goes by: settings, chance, and what was chosen so far.
#pragma once

#include "base/error.h"
#include "sampling/random.h"

namespace rwkvflow {

// A number for a token: what is added to its logit, or how often it was chosen.
struct Tally {
    uint32_t token;
    double value;
};

// Tallies by token, in order. Memory is taken by reserve and nowhere else.
struct Tallies {
    Tally *all = nullptr;
    size_t count = 0, room = 0;

    bool reserve(size_t wanted);  // false without the memory
    // Where the token is, or would be.
    size_t find(uint32_t token) const;
    // One that is not there yet, at its place; there is room.
    void insert(size_t at, uint32_t token, double value);
};

// Largest size of a bias or a penalty: sums of them stay finite.
inline constexpr double kLargestPenalty = 1e300;

}  // namespace rwkvflow

struct rwkvflow_sampler {
    double temperature = 1.0, top_p = 0.7, presence = 0.0, frequency = 0.0, decay = 0.996;
    uint32_t top_k = 0;  // 0: as many as there are
    rwkvflow::Random random;
    rwkvflow::Tallies bias, counts;
    bool taken = false;  // by the batch that is being checked

    explicit rwkvflow_sampler(uint64_t seed) : random(seed) {}
    bool penalizes() const { return presence != 0 || frequency != 0; }
    // Counts a token that was chosen; there is room for another one.
    void chose(uint32_t token);
};

// Chance: a stream of random numbers that its seed determines, on every machine.
#pragma once

#include <stdint.h>

namespace rwkvflow {

// xoshiro256**, seeded by splitmix64 (Blackman and Vigna, public domain algorithms).
class Random {
public:
    explicit Random(uint64_t seed) {
        for (uint64_t &word : state_) {
            seed += 0x9E3779B97F4A7C15u;
            uint64_t z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9u;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
            word = z ^ (z >> 31);
        }
    }

    // A multiple of 2^-53 from 0 to below 1.
    double below_one() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

private:
    static uint64_t rotated(uint64_t value, int by) { return (value << by) | (value >> (64 - by)); }

    uint64_t bits() {
        uint64_t *s = state_;
        const uint64_t result = rotated(s[1] * 5, 7) * 9, t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = rotated(s[3], 45);
        return result;
    }

    uint64_t state_[4];
};

}  // namespace rwkvflow

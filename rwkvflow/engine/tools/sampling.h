// Choosing the next token: bit for bit what rwkvflow/engine/sampling.py does, whose description holds here too.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct Sampling {
    double temperature = 1.0, top_p = 0.7, presence = 0, frequency = 0, decay = 0.996;
    size_t top_k = 0;  // 0: as many as there are
};

// xoshiro256**, seeded by splitmix64.
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

// e to the power of x <= 0; 0 below -700. Additions and multiplications in this order only.
inline double exp_of(double x) {
    if (x < -700.0) return 0.0;
    const double t = x * 1.4426950408889634 + 0.5;
    int64_t whole = static_cast<int64_t>(t);
    if (static_cast<double>(whole) > t) --whole;
    const double k = static_cast<double>(whole);
    const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
    double factorial = 6227020800.0;  // 13!
    double out = 1.0 / factorial;
    for (int n = 13; n > 0; --n) {
        factorial /= n;
        out = out * r + 1.0 / factorial;
    }
    const uint64_t bits = static_cast<uint64_t>(whole + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return out * power;
}

class Sampler {
public:
    Sampler(const Sampling &settings, uint64_t seed) : settings_(settings), random_(seed) {}
    Sampler(const Sampler &) = delete;
    Sampler &operator=(const Sampler &) = delete;
    ~Sampler() {
        free(values_);
        free(weights_);
        free(counts_);
        free(heap_);
        free(ids_);
        free(running_);
    }

    // False without the memory. exist(i): whether an id has a token; those that have none are never chosen.
    template <class Exist>
    bool reserve(size_t vocabulary, Exist exist) {
        size_ = vocabulary;
        values_ = static_cast<double *>(malloc(size_ * sizeof(double)));
        weights_ = static_cast<double *>(malloc(size_ * sizeof(double)));
        counts_ = static_cast<double *>(calloc(size_, sizeof(double)));
        running_ = static_cast<double *>(malloc(size_ * sizeof(double)));
        heap_ = static_cast<uint32_t *>(malloc(size_ * sizeof(uint32_t)));
        ids_ = static_cast<uint32_t *>(malloc(size_ * sizeof(uint32_t)));
        if (values_ == nullptr || weights_ == nullptr || counts_ == nullptr || running_ == nullptr ||
            heap_ == nullptr || ids_ == nullptr)
            return false;
        for (size_t i = 0; i < size_; ++i)
            if (exist(i)) ids_[n_ids_++] = static_cast<uint32_t>(i);
        return n_ids_ > 0;
    }

    // The next token; the size of the vocabulary where a logit is not finite.
    size_t choose(const float *logits) {
        size_t best = ids_[0];
        for (size_t i = 0; i < size_; ++i) {
            values_[i] = static_cast<double>(logits[i]);
            if (!(values_[i] - values_[i] == 0)) return size_;
            if (counts_[i] > 0) values_[i] -= settings_.presence + settings_.frequency * counts_[i];
        }
        for (size_t k = 1; k < n_ids_; ++k)
            if (values_[ids_[k]] > values_[best]) best = ids_[k];
        const size_t token = settings_.temperature == 0 ? best : draw(values_[best]);
        for (size_t i = 0; i < size_; ++i) counts_[i] *= settings_.decay;
        counts_[token] += 1;
        return token;
    }

private:
    size_t draw(double largest) {
        double total = 0;
        for (size_t k = 0; k < n_ids_; ++k) {
            const uint32_t i = ids_[k];
            weights_[i] = exp_of((values_[i] - largest) / settings_.temperature);
            total += weights_[i];
        }
        const size_t most = settings_.top_k == 0 || settings_.top_k > n_ids_ ? n_ids_ : settings_.top_k;
        build_heap();
        size_t taken = 0;  // the first tokens, taken off the heap, stand at its end, the first one last
        if (settings_.top_k != 0) {
            while (taken < most) take(taken++);
            total = running_[most - 1];
        }
        const double share = random_.below_one();
        size_t end = most;
        double kept = total;
        if (settings_.top_p < 1) {
            for (end = 0; end < most; ++end) {
                if (end == taken) take(taken++);
                if (running_[end] >= settings_.top_p * total) break;
            }
            end = end < most ? end + 1 : most;
            kept = running_[end - 1];
        }
        for (size_t at = 0; at < end; ++at) {
            if (at == taken) take(taken++);
            if (running_[at] > share * kept || at + 1 == end) return heap_[n_ids_ - 1 - at];
        }
        return heap_[n_ids_ - 1];
    }

    bool before(uint32_t a, uint32_t b) const { return values_[a] > values_[b] || (values_[a] == values_[b] && a < b); }

    void sink(size_t at, size_t count) {
        for (size_t child = 2 * at + 1; child < count; at = child, child = 2 * at + 1) {
            if (child + 1 < count && before(heap_[child + 1], heap_[child])) ++child;
            if (!before(heap_[child], heap_[at])) return;
            const uint32_t other = heap_[at];
            heap_[at] = heap_[child];
            heap_[child] = other;
        }
    }

    void build_heap() {
        memcpy(heap_, ids_, n_ids_ * sizeof(uint32_t));
        for (size_t i = n_ids_ / 2; i-- > 0;) sink(i, n_ids_);
    }

    // Moves the first token that is left to the end, and adds its weight to the running sum.
    void take(size_t number) {
        const size_t left = n_ids_ - 1 - number;
        const uint32_t first = heap_[0];
        heap_[0] = heap_[left];
        heap_[left] = first;
        sink(0, left);
        running_[number] = (number == 0 ? 0.0 : running_[number - 1]) + weights_[first];
    }

    Sampling settings_;
    Random random_;
    size_t size_ = 0, n_ids_ = 0;
    double *values_ = nullptr, *weights_ = nullptr, *counts_ = nullptr, *running_ = nullptr;
    uint32_t *heap_ = nullptr, *ids_ = nullptr;  // ids_: those that have a token, in order
};

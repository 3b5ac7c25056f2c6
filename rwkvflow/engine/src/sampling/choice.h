// Choosing the next token: the same logits, settings and seed choose the same tokens on every machine.
//
// Everything is additions, multiplications, divisions and comparisons of doubles in a stated order; no exp of a C
// library, no fused multiply-add, no sum whose order a processor chooses. rwkvflow/engine/sampling.py is the same in
// Python, bit for bit, and describes it.
//
// What makes it quick changes no bit: exponentials of eight tokens at a time (Kernels::running); a bound below which no
// token can be one of those that are put in order; and those are put in order only as far as somebody asks.
#pragma once

#include "kernels/common/kernels.h"
#include "sampling/sampler.h"

namespace rwkvflow {

inline constexpr uint32_t kNoToken = UINT32_MAX;

// An id and its logit, as it is after bias and penalties.
struct Candidate {
    double value;
    uint32_t token;
};

// Working memory of one thread, for vocabularies of `size` ids.
struct ChoiceRoom {
    uint32_t size;
    double *values;              // [size], and up to a whole number of groups
    double *largest;             // of each group of values
    double *running;             // [size]
    Candidate *found, *ordered;  // [size]
    uint32_t *ends;              // of buckets
};

// Null for no memory; free with aligned_free.
ChoiceRoom *choice_room(uint32_t size);

// The next token of room->size, or kNoToken where a logit is not finite, or none is allowed. allowed: bits of the ids
// that may be chosen, the first one lowest in the first word, or null for all. The sampler has room for one more count,
// and its biases are of the vocabulary.
uint32_t choose(const Kernels *kernels, ChoiceRoom *room, rwkvflow_sampler *sampler, const float *logits,
                const uint32_t *allowed);

// The log-probability of a token: its logit less the logarithm of the sum of all weights, NaN where a logit is not
// finite. The `top` likeliest ones of those that are allowed, in order, with theirs, and kNoToken where there are no
// more; where tokens and logprobs of them go may be null where top is 0.
double rate(const Kernels *kernels, ChoiceRoom *room, const float *logits, const uint32_t *allowed, uint32_t token,
            uint32_t top, uint32_t *top_tokens, double *top_logprobs);

}  // namespace rwkvflow

// Tokens of many sequences, in one pass over the weights; see eval.h.
#pragma once

#include "eval/eval.h"

namespace rwkvflow {

// What there is to evaluate: the arguments of rwkvflow_eval_sequences. lengths null: one token each of so many
// sequences.
struct Sequences {
    const uint32_t *tokens;  // in the vocabulary
    const size_t *lengths;   // each at least 1
    size_t count;            // of sequences, at least 1
    const float *const *states_in;
    float *const *states_out, *const *logits, *const *hidden;
    size_t length(size_t i) const { return lengths == nullptr ? 1 : lengths[i]; }
};

// `block` says what to work with; `fresh` is a fresh state, which is only read. False with ARGS for states that
// overlap, or CTX | ALLOC; nothing is evaluated then.
bool eval_sequences(Block *block, const float *fresh, const Sequences &what, size_t tokens, Error *error);

}  // namespace rwkvflow

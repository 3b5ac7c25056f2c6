// One token each of many sequences, in one pass over the weights; see eval.h.
#pragma once

#include "eval/eval.h"

namespace rwkvflow {

// The arguments of rwkvflow_eval_batch, with tokens that are in the vocabulary and a count of at least 1. `block` says
// what to work with; `fresh` is a fresh state, which is only read. False with ARGS for states that overlap, or CTX |
// ALLOC; nothing is evaluated then.
bool eval_batch(Block *block, const float *fresh, const uint32_t *tokens, size_t count, const float *const *states_in,
                float *const *states_out, float *const *logits, Error *error);

}  // namespace rwkvflow

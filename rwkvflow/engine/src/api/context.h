// What a context of rwkv.h is: a model, shared with its clones, and what one thread works with.
#pragma once

#include "eval/eval.h"
#include "sampling/choice.h"

struct rwkv_context {
    rwkvflow::Model *model;
    rwkvflow::Pool *pool;
    rwkvflow::Workspace one;   // for single tokens
    rwkvflow::Workspace many;  // for sequences and batches; made when first needed
    rwkvflow::Error error;
    float group_norm_eps, layer_norm_eps;
    float *fresh;                  // a fresh state; made when first needed
    rwkvflow::ChoiceRoom **rooms;  // for choosing tokens, of as many threads as were needed so far; null where not
    bool has_fingerprint;          // of the model file, for saved states; made when first needed
    uint8_t fingerprint[32];
};

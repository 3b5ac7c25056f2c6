// What a context of rwkv.h is: a model, shared with its clones, and what one thread works with.
#pragma once

#include "eval/eval.h"

struct rwkv_context {
    rwkvflow::Model *model;
    rwkvflow::Pool *pool;
    rwkvflow::Workspace one;   // for single tokens
    rwkvflow::Workspace many;  // for sequences and batches; made when first needed
    rwkvflow::Error error;
    float group_norm_eps, layer_norm_eps;
    float *fresh;          // a fresh state; made when first needed
    bool has_fingerprint;  // of the model file, for saved states; made when first needed
    uint8_t fingerprint[32];
};

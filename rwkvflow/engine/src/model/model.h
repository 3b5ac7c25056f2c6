// A model: its sizes and where its weights are. Built once from a file, then read-only, and shared by clones of a
// context.
//
// V vocabulary, C width (n_embd), A width of the time mix (n_att), F width of the feed-forward part, H heads of N.
#pragma once

#include "kernels/common/kernels.h"
#include "model/file.h"

namespace rwkvflow {

enum class Version { k4, k5_0, k5_1, k5_2, k6, k7 };

// Vectors are copied out of the file as aligned floats, with zeros up to a multiple of kSlice. What a version has not
// is null (a matrix with null data).
struct Layer {
    float gain;  // what comes out of o and ffn_v is multiplied by it: a power of two, 1 but in a GGUF of version 6
    const float *ln1_w, *ln1_b, *ln2_w, *ln2_b;  // [C]
    const float *ln_x_w, *ln_x_b;                // [A], 5.0 on
    // Token shift: input j is x + (before - x) * mix[j], each [C]. Versions 4 to 5.2 store 1 - mix in files.
    // Order: 4 k v r; 5 k v r g; 6 w k v r g; 7 r w k v a g.
    const float *mix[6];
    const float *mix_x;                      // [C], 6
    const float *ffn_mix_k, *ffn_mix_r;      // [C]
    const float *decay, *first;              // [A]; in 6 the base of the decay; in 7 decay only (w0)
    const float *a0, *v0, *k_k, *k_a, *r_k;  // [A], 7
    Matrix r, k, v, g;                       // [A, C]
    Matrix o;                                // [C, A]
    Matrix ffn_k, ffn_v, ffn_r;              // [F, C], [C, F], [C, C]
    Matrix mix1, mix2[5];                    // 6: [5D, C], [C, D]
    Matrix w1, w2, a1, a2, v1, v2, g1, g2;   // [D, C], [A, D]: decay (6 and 7), the others 7
};

struct Model {
    File file;
    Version version;
    uint32_t n_vocab, n_embd, n_att, n_ffn, n_head, head_size, n_layer;
    uint32_t n_low;        // the largest of the low ranks; the 5 of version 6's mix together
    uint64_t state_len;    // floats
    uint64_t layer_state;  // of them, a layer
    bool quantized;        // whether any matrix is: activations need 8 bits then
    Matrix emb, head;      // [V, C]
    float layer_norm_eps;
    const float *ln0_w, *ln0_b, *ln_out_w, *ln_out_b;
    Layer *layers;
    float *vectors;  // what the vectors above point into
    uint32_t references;
};

// Null on an error: those of file_open, and MODEL_PARAMS with PARAM_MISSING, SHAPE or DIMENSION; MODEL with
// UNSUPPORTED; ALLOC.
Model *model_open(const char *path, Error *error);
void model_retain(Model *model);
void model_release(Model *model);

const char *version_name(Version version);

// How a version reads its layer's tensors; see bind.h.
struct Binder;
void bind_v4(Binder *binder, Layer *layer);
void bind_v5(Binder *binder, Layer *layer);
void bind_v6(Binder *binder, Layer *layer);
void bind_v7(Binder *binder, Layer *layer);

}  // namespace rwkvflow

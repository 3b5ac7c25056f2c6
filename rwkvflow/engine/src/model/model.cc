#include "model/model.h"

#include <stdio.h>

#include "model/bind.h"
#include "quantize/blocks.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kMaxWidth = 1u << 24;  // of any dimension but the vocabulary: keeps all products below in range

bool has(const Model *model, const char *name) { return file_find(model->file, name) != nullptr; }

Version tell_version(const Model *model) {
    if (has(model, "blocks.0.att.r_k") || has(model, "blocks.0.att.x_rwkvag")) return Version::k7;
    if (has(model, "blocks.0.att.time_maa_x")) return Version::k6;
    if (!has(model, "blocks.0.att.ln_x.weight")) return Version::k4;
    if (!has(model, "blocks.0.att.gate.weight") && !has(model, "blocks.0.att.time_mix_g")) return Version::k5_0;
    // 5.1 has one decay a head, 5.2 one a channel: [H, 1, 1] or [H, 1] against [H, N, 1].
    const Tensor *decay = file_find(model->file, "blocks.0.att.time_decay");
    return decay != nullptr && decay->elements > decay->dims[0] ? Version::k5_2 : Version::k5_1;
}

bool find_sizes(Model *model, Binder *b) {
    model->n_vocab = static_cast<uint32_t>(model->file.header[kVocab]);
    model->n_embd = static_cast<uint32_t>(model->file.header[kEmbd]);
    model->n_layer = static_cast<uint32_t>(model->file.header[kLayers]);
    // Every layer has at least ten tensors, so this also bounds the table of layers by the size of the file.
    if (model->n_layer > model->file.count / 10 || model->n_embd > kMaxWidth)
        return fail(b->error, RWKV_ERROR_MODEL | RWKV_ERROR_DIMENSION,
                    "%u layers of width %u: more than %llu tensors can hold", model->n_layer, model->n_embd,
                    static_cast<unsigned long long>(model->file.count));
    model->emb = b->matrix("/emb.weight", model->n_vocab, model->n_embd);
    model->head = b->matrix("/head.weight", model->n_vocab, model->n_embd);
    const uint32_t keep = model->n_low;
    const Matrix key = b->matrix("att.key.weight", 0, model->n_embd),
                 ffn = b->matrix("ffn.key.weight", 0, model->n_embd);
    model->n_low = keep;
    if (b->failed) return false;
    model->n_att = key.rows;
    model->n_ffn = ffn.rows;
    if (key.rows > kMaxWidth || ffn.rows > kMaxWidth)
        return fail(b->error, RWKV_ERROR_MODEL | RWKV_ERROR_DIMENSION, "widths of %u and %u", key.rows, ffn.rows);
    model->version = tell_version(model);
    model->n_head = 1;
    if (model->version != Version::k4) {
        // Heads are the rows of r_k and time_faaaa, and of time_decay or time_first where there is one number a head.
        const Tensor *heads = model->version == Version::k7   ? b->find("att.r_k")
                              : model->version == Version::k6 ? b->find("att.time_faaaa")
                                                              : b->find("att.time_decay");
        if (b->failed) return false;
        // r_k is [H, N]; some writers flatten what has one dimension of 1, so a single row is a single head.
        const uint64_t n_head = heads->dims[0];
        if (n_head == 0 || n_head > model->n_att || model->n_att % n_head != 0) {
            b->bad_shape(heads, "[heads, ...] with a number of heads that divides the width");
            return false;
        }
        model->n_head = static_cast<uint32_t>(n_head);
    }
    model->head_size = model->n_att / model->n_head;
    const uint64_t width = model->n_embd, att = model->n_att;
    // Both halves keep the input that was before; the rest is a, b, p of version 4 or the heads' matrices.
    model->layer_state = 2 * width + (model->version == Version::k4 ? 3 * att : att * model->head_size);
    model->state_len = mul_sat(model->layer_state, model->n_layer);
    return true;
}

// Everything that points into the file or, when b->vectors is there, into the copies.
bool bind_all(Model *model, Binder *b) {
    b->used = 0;
    b->layer = 0;
    model->ln0_w = b->vector("ln0.weight", model->n_embd);
    model->ln0_b = b->vector("ln0.bias", model->n_embd);
    model->ln_out_w = b->vector("/ln_out.weight", model->n_embd);
    model->ln_out_b = b->vector("/ln_out.bias", model->n_embd);
    for (uint32_t i = 0; i < model->n_layer && !b->failed; ++i) {
        b->layer = i;
        Layer *layer = &model->layers[i];
        layer->ln1_w = b->vector("ln1.weight", model->n_embd);
        layer->ln1_b = b->vector("ln1.bias", model->n_embd);
        layer->ln2_w = b->vector("ln2.weight", model->n_embd);
        layer->ln2_b = b->vector("ln2.bias", model->n_embd);
        switch (model->version) {
            case Version::k4: bind_v4(b, layer); break;
            case Version::k5_0:
            case Version::k5_1:
            case Version::k5_2: bind_v5(b, layer); break;
            case Version::k6: bind_v6(b, layer); break;
            case Version::k7: bind_v7(b, layer); break;
        }
        layer->r = b->matrix("att.receptance.weight", model->n_att, model->n_embd);
        layer->k = b->matrix("att.key.weight", model->n_att, model->n_embd);
        layer->v = b->matrix("att.value.weight", model->n_att, model->n_embd);
        layer->o = b->matrix("att.output.weight", model->n_embd, model->n_att);
        layer->ffn_k = b->matrix("ffn.key.weight", model->n_ffn, model->n_embd);
        layer->ffn_v = b->matrix("ffn.value.weight", model->n_embd, model->n_ffn);
        if (model->version != Version::k7)
            layer->ffn_r = b->matrix("ffn.receptance.weight", model->n_embd, model->n_embd);
    }
    return !b->failed;
}

bool load(Model *model, const char *path, Error *error) {
    if (!file_open(path, &model->file, error)) return false;
    Binder binder = {model, error, 0, nullptr, 0, false};
    if (!find_sizes(model, &binder)) return false;
    model->layers = static_cast<Layer *>(calloc(model->n_layer, sizeof(Layer)));
    if (model->layers == nullptr)
        return fail(error, RWKV_ERROR_MODEL | RWKV_ERROR_ALLOC, "no memory for %u layers", model->n_layer);
    // Multiplied at once by a power of two: exact, and so the sum of all layers is the one that a .bin's matrices give.
    const uint32_t every = model->file.rescale;
    for (uint32_t i = 0; i < model->n_layer; ++i)
        model->layers[i].gain = bits_float((127 + (every == 0 ? 0 : i / every)) << 23);
    model->layer_norm_eps = model->file.layer_norm_eps > 0 ? model->file.layer_norm_eps : 1e-5f;
    if (!bind_all(model, &binder)) return false;
    model->vectors = static_cast<float *>(aligned_zeroed(mul_sat(binder.used, sizeof(float))));
    if (model->vectors == nullptr) return fail(error, RWKV_ERROR_MODEL | RWKV_ERROR_ALLOC, "no memory for the vectors");
    binder.vectors = model->vectors;
    return bind_all(model, &binder);
}

}  // namespace

Model *model_open(const char *path, Error *error) {
    Model *model = static_cast<Model *>(calloc(1, sizeof(Model)));
    if (model == nullptr) {
        fail(error, RWKV_ERROR_MODEL | RWKV_ERROR_ALLOC, "no memory for a model");
        return nullptr;
    }
    model->references = 1;
    if (load(model, path, error)) return model;
    model_release(model);
    return nullptr;
}

void model_retain(Model *model) { __atomic_fetch_add(&model->references, 1, __ATOMIC_RELAXED); }

void model_release(Model *model) {
    if (__atomic_sub_fetch(&model->references, 1, __ATOMIC_ACQ_REL) != 0) return;
    file_close(&model->file);
    aligned_free(model->vectors);
    free(model->layers);
    free(model);
}

const char *version_name(Version version) {
    const char *const names[] = {"4", "5.0", "5.1", "5.2", "6", "7"};
    return names[static_cast<int>(version)];
}

}  // namespace rwkvflow

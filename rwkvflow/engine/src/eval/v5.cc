// Versions 5.0 (no gate, a decay a head), 5.1 (gate, a decay a head) and 5.2 (gate, a decay a channel): a matrix of
// state a head. What is one number a head is repeated for its channels when the model is opened, so all three run the
// same code.
#include "eval/eval.h"
#include "model/bind.h"

namespace rwkvflow {

void bind_v5(Binder *b, Layer *l) {
    const Model *m = b->model;
    const uint32_t c = m->n_embd, a = m->n_att, n = m->head_size;
    l->mix[0] = b->vector("att.time_mix_k", c, true);
    l->mix[1] = b->vector("att.time_mix_v", c, true);
    l->mix[2] = b->vector("att.time_mix_r", c, true);
    if (m->version != Version::k5_0) {
        l->mix[3] = b->vector("att.time_mix_g", c, true);
        l->g = b->matrix("att.gate.weight", a, c);
    }
    l->decay = b->vector("att.time_decay", a, false, n);
    const bool faaaa = b->find("att.time_faaaa", true) != nullptr;
    l->first = b->vector(faaaa ? "att.time_faaaa" : "att.time_first", a, false, n);
    l->ln_x_w = b->vector("att.ln_x.weight", a);
    l->ln_x_b = b->vector("att.ln_x.bias", a);
    l->ffn_mix_k = b->vector("ffn.time_mix_k", c, true);
    l->ffn_mix_r = b->vector("ffn.time_mix_r", c, true);
}

void Part::heads5(Range a, const float *decay, bool gated) const {
    const uint32_t n = model->head_size;
    // A head at a time: its state stays in the nearest cache for all tokens.
    for (uint32_t i = a.begin; i < a.end; i += n) {
        const size_t at = 2 * static_cast<size_t>(model->n_embd) + static_cast<size_t>(i) * n;
        for (uint32_t t = 0; t < count; ++t) {
            float *att = work->att.f + static_cast<size_t>(t) * work->att.stride + i;
            k->wkv5(row(work->r, t) + i, row(work->k, t) + i, row(work->v, t) + i, layer->first + i,
                    (decay != nullptr ? decay : row(work->w, t)) + i, in(t) + at, out(t) + at, att, n);
            float mean, scale;
            k->moments(att, n, block->group_norm_eps, &mean, &scale);
            k->normalize(att, mean, scale, layer->ln_x_w + i, layer->ln_x_b + i, att, n);
        }
    }
    if (!gated) return;
    for (uint32_t t = 0; t < count; ++t)
        k->multiply_silu(work->att.f + static_cast<size_t>(t) * work->att.stride + a.begin, row(work->g, t) + a.begin,
                         a.size());
}

void time_mix_v5(const Part &p) {
    const Layer &l = *p.layer;
    Workspace *w = p.work;
    const bool gated = l.g.data != nullptr;
    const Matrix *const matrices[] = {&l.k, &l.v, &l.r, &l.g};

    const Part::Range c = p.share(p.model->n_embd);
    p.inputs(l.ln1_w, l.ln1_b, l.mix, matrices, gated ? 4 : 3, 0, c);
    p.barrier();

    float *const to[] = {w->k, w->v, w->r, w->g};
    p.each_row(matrices, [&](uint32_t i, Part::Range a) { p.matmul(*matrices[i], w->in[i], to[i], w->ld, a); });
    p.barrier();

    p.each_heads([&](Part::Range a) {
        p.heads5(a, l.decay, gated);
        p.ready(w->att, l.o, a);
    });
    p.output();
}

}  // namespace rwkvflow

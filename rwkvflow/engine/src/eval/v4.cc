// Version 4: one number of state a channel, three times (a numerator, a denominator, and the exponent taken out of
// both).
#include "eval/eval.h"
#include "model/bind.h"

namespace rwkvflow {

void bind_v4(Binder *b, Layer *l) {
    const uint32_t c = b->model->n_embd, a = b->model->n_att;
    l->mix[0] = b->vector("att.time_mix_k", c, true);
    l->mix[1] = b->vector("att.time_mix_v", c, true);
    l->mix[2] = b->vector("att.time_mix_r", c, true);
    l->decay = b->vector("att.time_decay", a);
    l->first = b->vector("att.time_first", a);
    l->ffn_mix_k = b->vector("ffn.time_mix_k", c, true);
    l->ffn_mix_r = b->vector("ffn.time_mix_r", c, true);
}

void time_mix_v4(const Part &p) {
    const Layer &l = *p.layer;
    Workspace *w = p.work;
    const size_t width = p.model->n_embd, att = p.model->n_att;
    const Matrix *const matrices[] = {&l.k, &l.v, &l.r};

    const Part::Range c = p.share(p.model->n_embd);
    p.inputs(l.ln1_w, l.ln1_b, l.mix, matrices, 3, 0, c);
    p.barrier();

    float *const to[] = {w->k, w->v, w->r};
    p.each_row(matrices, [&](uint32_t i, Part::Range a) { p.matmul(*matrices[i], w->in[i], to[i], w->ld, a); });
    p.barrier();

    const Part::Range a = p.share(p.model->n_att);
    for (uint32_t t = 0; t < p.count; ++t) {
        const float *in = p.in(t) + 2 * width + a.begin;
        float *out = p.out(t) + 2 * width + a.begin;
        const float *const old[3] = {in, in + att, in + 2 * att};
        float *const state[3] = {out, out + att, out + 2 * att};
        p.k->wkv4(p.row(w->r, t) + a.begin, p.row(w->k, t) + a.begin, p.row(w->v, t) + a.begin, l.first + a.begin,
                  l.decay + a.begin, old, state, w->att.f + static_cast<size_t>(t) * w->att.stride + a.begin, a.size());
    }
    p.ready(w->att, l.o, a);
    p.output();
}

}  // namespace rwkvflow

// Version 6: the token shift and the decay depend on the input, each through a pair of low-rank matrices.
#include "eval/eval.h"
#include "model/bind.h"

namespace rwkvflow {

void bind_v6(Binder *b, Layer *l) {
    const Model *m = b->model;
    const uint32_t c = m->n_embd, a = m->n_att;
    l->mix_x = b->vector("att.time_maa_x", c);
    const char *const mixes[] = {"att.time_maa_w", "att.time_maa_k", "att.time_maa_v", "att.time_maa_r",
                                 "att.time_maa_g"};
    for (int i = 0; i < 5; ++i) l->mix[i] = b->vector(mixes[i], c);
    l->mix1 = b->matrix("att.time_maa_w1", 0, c);
    if (!b->failed && l->mix1.rows % 5 != 0) b->bad_shape(b->find("att.time_maa_w1"), "[5 times a rank, width]");
    for (uint32_t i = 0; i < 5; ++i) l->mix2[i] = b->part("att.time_maa_w2", 5, i, c, l->mix1.rows / 5);
    l->decay = b->vector("att.time_decay", a);
    l->w1 = b->matrix("att.time_decay_w1", 0, c);
    l->w2 = b->matrix("att.time_decay_w2", a, l->w1.rows);
    l->first = b->vector("att.time_faaaa", a);
    l->g = b->matrix("att.gate.weight", a, c);
    l->ln_x_w = b->vector("att.ln_x.weight", a);
    l->ln_x_b = b->vector("att.ln_x.bias", a);
    l->ffn_mix_k = b->vector("ffn.time_maa_k", c);
    l->ffn_mix_r = b->vector("ffn.time_maa_r", c);
}

void time_mix_v6(const Part &p) {
    const Layer &l = *p.layer;
    Workspace *w = p.work;
    const Activations &decayed = w->low[5];  // 0 to 4: the parts of the mix

    const Part::Range c = p.share(p.model->n_embd);
    p.each_tokens([&](Part::Range t) {
        p.norm(l.ln1_w, l.ln1_b, t, c);
        p.shift(w->in[5], l.mix_x, nullptr, 0, t, c);
        p.ready(w->in[5], l.mix1, t, c);
    });
    p.barrier();

    Matrix parts[5];
    for (uint32_t i = 0; i < 5; ++i) {
        parts[i] = l.mix1;
        parts[i].rows /= 5;
        parts[i].data += parts[i].row_bytes * (static_cast<uint64_t>(parts[i].rows) * i);
    }
    const Matrix *const mixes[] = {&parts[0], &parts[1], &parts[2], &parts[3], &parts[4]};
    p.each_row(mixes, [&](uint32_t i, Part::Range d) {
        p.matmul(parts[i], w->in[5], w->low[i].f, w->low[i].stride, d);
        p.tanh(w->low[i], d);
        p.ready(w->low[i], l.mix2[i], d);
    });
    p.barrier();

    const Matrix *const matrices[] = {&l.w1, &l.k, &l.v, &l.r, &l.g};
    p.each_piece(p.model->n_embd, kSlice, [&](Part::Range d) {
        for (uint32_t i = 0; i < 5; ++i) {
            p.matmul(l.mix2[i], w->low[i], w->more, w->ld, d);
            p.shift(w->in[i], l.mix[i], w->more, 0, p.all_tokens(), d);
            p.ready(w->in[i], *matrices[i], d);
        }
        p.keep_last(0, d);
    });
    p.barrier();

    float *const to[] = {nullptr, w->k, w->v, w->r, w->g};
    p.each_row(matrices, [&](uint32_t i, Part::Range d) {
        if (i != 0) return p.matmul(*matrices[i], w->in[i], to[i], w->ld, d);
        p.matmul(l.w1, w->in[0], decayed.f, decayed.stride, d);
        p.tanh(decayed, d);
        p.ready(decayed, l.w2, d);
    });
    p.barrier();

    p.each_heads([&](Part::Range a) {
        p.matmul(l.w2, decayed, w->w, w->ld, a);
        for (uint32_t t = 0; t < p.count; ++t) p.k->decay6(p.row(w->w, t) + a.begin, l.decay + a.begin, a.size());
        p.heads5(a, nullptr, true);
        p.ready(w->att, l.o, a);
    });
    p.output();
}

}  // namespace rwkvflow

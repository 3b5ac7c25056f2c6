// Version 7: the state of a head is corrected along a direction (kk) at a rate (a) before the new key and value go in;
// decay, rate, gate and the share of the first layer's values come from low-rank pairs.
#include "eval/eval.h"
#include "model/bind.h"

namespace rwkvflow {

void bind_v7(Binder *b, Layer *l) {
    const Model *m = b->model;
    const uint32_t c = m->n_embd, a = m->n_att;
    for (uint32_t i = 0; i < 6; ++i) l->mix[i] = b->vector_part("att.x_rwkvag", c, 6, i);
    l->decay = b->vector("att.w0", a);
    l->w1 = b->matrix("att.w1", 0, c);
    l->w2 = b->matrix("att.w2", a, l->w1.rows);
    l->a0 = b->vector("att.a0", a);
    l->a1 = b->matrix("att.a1", 0, c);
    l->a2 = b->matrix("att.a2", a, l->a1.rows);
    l->g1 = b->matrix("att.g1", 0, c);
    l->g2 = b->matrix("att.g2", a, l->g1.rows);
    if (b->layer > 0) {  // the first layer's values are what the others take a share of
        l->v0 = b->vector("att.v0", a);
        l->v1 = b->matrix("att.v1", 0, c);
        l->v2 = b->matrix("att.v2", a, l->v1.rows);
    }
    l->k_k = b->vector("att.k_k", a);
    l->k_a = b->vector("att.k_a", a);
    l->r_k = b->vector("att.r_k", a);
    l->ln_x_w = b->vector("att.ln_x.weight", a);
    l->ln_x_b = b->vector("att.ln_x.bias", a);
    l->ffn_mix_k = b->vector("ffn.x_k", c);
}

namespace {

// From r, k, v and the insides of the low-rank pairs to att, with the norm of each head and the gate.
void heads7(const Part &p, Part::Range a) {
    const Layer &l = *p.layer;
    Workspace *w = p.work;
    const uint32_t n = p.model->head_size;
    const size_t heads_at = 2 * static_cast<size_t>(p.model->n_embd);
    const bool first = p.number == 0;
    p.matmul(l.w2, w->low[0], w->w, w->ld, a);
    p.matmul(l.a2, w->low[1], w->a, w->ld, a);
    p.matmul(l.g2, w->low[2], w->g, w->ld, a);
    if (!first) p.matmul(l.v2, w->low[3], w->more, w->ld, a);
    for (uint32_t t = 0; t < p.count; ++t) {
        float *v = p.row(w->v, t) + a.begin;
        p.k->decay7(p.row(w->w, t) + a.begin, l.decay + a.begin, a.size());
        p.k->sigmoid(p.row(w->a, t) + a.begin, l.a0 + a.begin, a.size());
        if (first) {
            memcpy(p.row(w->v_first, t) + a.begin, v, a.size() * sizeof(float));
        } else {
            float *share = p.row(w->more, t) + a.begin;
            p.k->sigmoid(share, l.v0 + a.begin, a.size());
            p.k->lerp(v, p.row(w->v_first, t) + a.begin, share, a.size());
        }
    }
    // A head at a time: its state stays in the nearest cache for all tokens.
    for (uint32_t i = a.begin; i < a.end; i += n) {
        const size_t at = heads_at + static_cast<size_t>(i) * n;
        for (uint32_t t = 0; t < p.count; ++t)
            p.k->prepare7(p.row(w->k, t) + i, p.row(w->a, t) + i, l.k_k + i, l.k_a + i, p.row(w->kk, t) + i,
                          p.row(w->b, t) + i, n);
        for (uint32_t t = 0; t < p.count; ++t) {
            const float *r = p.row(w->r, t) + i, *key = p.row(w->k, t) + i, *v = p.row(w->v, t) + i;
            float *att = w->att.f + static_cast<size_t>(t) * w->att.stride + i;
            const bool goes_on = t + 1 < p.count && !p.block->begins[t + 1];
            const Head7 head = {.r = r,
                                .w = p.row(w->w, t) + i,
                                .k = key,
                                .v = v,
                                .kk = p.row(w->kk, t) + i,
                                .b = p.row(w->b, t) + i,
                                .in = p.in(t) + at,
                                .state = p.out(t) + at,
                                .out = att,
                                .fresh = t == 0 || p.block->begins[t],
                                .next = goes_on ? p.row(w->kk, t + 1) + i : nullptr,
                                .next_out = att + w->att.stride};
            p.k->wkv7(&head, n);
            float mean, scale;
            p.k->moments(att, n, p.block->group_norm_eps, &mean, &scale);
            p.k->normalize(att, mean, scale, l.ln_x_w + i, l.ln_x_b + i, att, n);
            p.k->bonus7(r, key, l.r_k + i, v, att, n);
        }
    }
    for (uint32_t t = 0; t < p.count; ++t)
        p.k->multiply(w->att.f + static_cast<size_t>(t) * w->att.stride + a.begin, p.row(w->g, t) + a.begin, a.size());
}

}  // namespace

void time_mix_v7(const Part &p) {
    const Layer &l = *p.layer;
    Workspace *w = p.work;
    enum { kR, kW, kK, kV, kA, kG };  // the order of x_rwkvag

    const Part::Range c = p.share(p.model->n_embd);
    const Matrix *const matrices[] = {&l.r, &l.w1, &l.k, &l.v, &l.a1, &l.g1};
    p.inputs(l.ln1_w, l.ln1_b, l.mix, matrices, 6, 0, c);
    // Values and their low-rank pair share an input; both types are served.
    if (p.number > 0) p.ready(w->in[kV], l.v1, c);
    p.barrier();

    // Low-rank pairs, then the rest.
    const Matrix *const rows[] = {&l.w1, &l.a1, &l.g1, &l.v1, &l.r, &l.k, &l.v};
    const Matrix *const pairs[] = {&l.w2, &l.a2, &l.g2, &l.v2};
    const Activations *const in[] = {&w->in[kW], &w->in[kA], &w->in[kG], &w->in[kV],
                                     &w->in[kR], &w->in[kK], &w->in[kV]};
    float *const to[] = {w->r, w->k, w->v};
    p.each_row(rows, [&](uint32_t i, Part::Range d) {
        if (i >= 4) return p.matmul(*rows[i], *in[i], to[i - 4], w->ld, d);
        const Activations &low = w->low[i];
        p.matmul(*rows[i], *in[i], low.f, low.stride, d);
        if (i == 0) p.tanh(low, d);
        if (i == 2)
            for (uint32_t t = 0; t < p.count; ++t)
                p.k->sigmoid(low.f + static_cast<size_t>(t) * low.stride + d.begin, nullptr, d.size());
        p.ready(low, *pairs[i], d);
    });
    p.barrier();

    p.each_heads([&](Part::Range a) {
        heads7(p, a);
        p.ready(w->att, l.o, a);
    });
    p.output();
}

}  // namespace rwkvflow

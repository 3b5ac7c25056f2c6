#include "eval/eval.h"

#include "base/memory.h"
#include "eval/gather.h"
#include "quantize/quantize.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kLine = 16;  // floats

uint32_t round_up(uint32_t n) { return (n + kSlice - 1) / kSlice * kSlice; }

Activations take_activations(Arena *arena, uint32_t tokens, uint32_t columns, bool quantized) {
    Activations out = {};
    out.stride = stride_for(columns);
    const uint32_t room = tokens == 1 ? 1 : (tokens + kTokenUnit - 1) / kTokenUnit * kTokenUnit;
    const uint64_t all = mul_sat(room, out.stride);
    out.f = arena->take<float>(all);
    if (quantized) {
        out.q = arena->take<int8_t>(all);
        out.d = arena->take<float>(mul_sat(all / kSlice, kBlockScales));
        out.s = arena->take<float>(mul_sat(all / kSlice, kBlockScales));
        out.n = arena->take<int32_t>(mul_sat(all / kSlice, kBlockSums));
    }
    return out;
}

void lay_out(const Model *model, Arena *arena, Workspace *w) {
    const uint32_t t = w->tokens;
    const bool q = model->quantized;
    // An odd number of cache lines: the same columns of all tokens would share a few sets of the caches otherwise.
    w->ld = round_up(model->n_att > model->n_embd ? model->n_att : model->n_embd) + kLine;
    w->state = arena->take<float>(model->state_len);
    w->x = arena->take<float>(mul_sat(t, w->ld));
    w->normed = arena->take<float>(mul_sat(t, w->ld));
    for (Activations &in : w->in) in = take_activations(arena, t, model->n_embd, q);
    w->att = take_activations(arena, t, model->n_att, q);
    w->ffn = take_activations(arena, t, model->n_ffn, q);
    for (Activations &low : w->low) low = take_activations(arena, t, model->n_low, q);
    float **const plain[] = {&w->r, &w->k, &w->v, &w->g, &w->w, &w->a, &w->b, &w->kk, &w->v_first, &w->more};
    for (float **each : plain) *each = arena->take<float>(mul_sat(t, w->ld));
    uint32_t cols = model->n_ffn > w->ld ? model->n_ffn : w->ld;
    cols = model->n_low > cols ? model->n_low : cols;
    w->scratch_stride = (scratch_bytes(cols) + kAlignment - 1) / kAlignment * kAlignment;
    w->scratch = arena->take<char>(mul_sat(w->scratch_stride, w->threads));
    w->strips = arena->take<float>(mul_sat(static_cast<uint64_t>(t) * kHeadRows, w->threads));
}

uint32_t lcm(uint32_t a, uint32_t b) {
    uint32_t x = a, y = b;
    while (y != 0) {
        const uint32_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

void embed(const Part &part) {
    const Model *model = part.model;
    // A whole token at a time: layer norm needs all of it.
    for (uint32_t t = part.index; t < part.count; t += part.threads) {
        const Matrix &emb = model->emb;
        float *x = part.row(part.work->x, t);
        dequantize_row(emb.type, emb.data + emb.row_bytes * part.block->tokens[t], x, emb.cols);
        float mean, scale;
        part.k->moments(x, model->n_embd, part.block->layer_norm_eps, &mean, &scale);
        part.k->normalize(x, mean, scale, model->ln0_w, model->ln0_b, x, model->n_embd);
    }
    part.barrier();
}

// Logits go to different places; the kernels put those of all tokens into one. So the rows come in strips, and from
// there to where they belong.
void head(const Part &part) {
    const Block *block = part.block;
    const Model *model = part.model;
    const Activations &in = part.work->in[0];
    const Part::Range c = part.share(model->n_embd);
    float *to[kMaxBlock];
    uint32_t all = 0, wanted = 0;
    for (uint32_t t = 0; t < part.count; ++t) all += block->logits[t] != nullptr;
    for (uint32_t t = 0; t < part.count; ++t) {
        if (block->hidden[t] == nullptr || c.size() == 0) continue;
        const float *x = part.row(part.work->x, t);
        float mean, scale;
        part.k->moments(x, model->n_embd, block->layer_norm_eps, &mean, &scale);
        part.k->normalize(x + c.begin, mean, scale, model->ln_out_w + c.begin, model->ln_out_b + c.begin,
                          block->hidden[t] + c.begin, c.size());
    }
    for (uint32_t t = 0; t < part.count; ++t) {
        if (block->logits[t] == nullptr) continue;
        const float *x = part.row(part.work->x, t);
        float mean, scale;
        part.k->moments(x, model->n_embd, block->layer_norm_eps, &mean, &scale);
        part.k->normalize(x + c.begin, mean, scale, model->ln_out_w + c.begin, model->ln_out_b + c.begin,
                          in.f + static_cast<size_t>(wanted) * in.stride + c.begin, c.size());
        if (is_quantized(model->head.type)) part.k->quantize(&in, wanted, wanted + 1, all, c.begin, c.end);
        to[wanted++] = block->logits[t];
    }
    if (wanted == 0) return;  // for every thread
    part.barrier();
    float *strip = part.work->strips + static_cast<size_t>(part.work->tokens) * kHeadRows * part.index;
    part.each_piece(model->n_vocab, kSlice, [&](Part::Range rows) {
        if (wanted == 1) {
            part.k->matmul(&model->head, &in, 1, rows.begin, rows.end, to[0], model->n_vocab, part.scratch());
            return;
        }
        Matrix some = model->head;
        for (uint32_t row = rows.begin; row < rows.end; row += some.rows) {
            some.rows = rows.end - row < kHeadRows ? rows.end - row : kHeadRows;
            some.data = model->head.data + model->head.row_bytes * row;
            part.k->matmul(&some, &in, wanted, 0, some.rows, strip, kHeadRows, part.scratch());
            for (uint32_t i = 0; i < wanted; ++i)
                memcpy(to[i] + row, strip + static_cast<size_t>(i) * kHeadRows, some.rows * sizeof(float));
        }
    });
}

void work_on_block(void *argument, uint32_t index) {
    const Block *block = static_cast<const Block *>(argument);
    const Model *model = block->model;
    uint32_t turn = 0;
    Part part = {block,        model, block->kernels, block->work, nullptr, 0, index, pool_size(block->pool),
                 block->count, 0,     &turn};
    embed(part);
    for (uint32_t i = 0; i < model->n_layer; ++i) {
        part.layer = &model->layers[i];
        part.number = i;
        part.state_at = model->layer_state * i;
        switch (model->version) {
            case Version::k4: time_mix_v4(part); break;
            case Version::k5_0:
            case Version::k5_1:
            case Version::k5_2: time_mix_v5(part); break;
            case Version::k6: time_mix_v6(part); break;
            case Version::k7: time_mix_v7(part); break;
        }
        channel_mix(part);
    }
    head(part);
}

}  // namespace

bool workspace_create(const Model *model, uint32_t tokens, uint32_t threads, Workspace *out, Error *error) {
    Workspace w = {};
    w.tokens = tokens;
    w.threads = threads;
    Arena arena;
    lay_out(model, &arena, &w);
    w.memory = aligned_zeroed(arena.used);
    if (w.memory == nullptr)
        return fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory to work on %u tokens: %llu bytes", tokens,
                    static_cast<unsigned long long>(arena.used));
    arena = {static_cast<char *>(w.memory), 0};
    lay_out(model, &arena, &w);
    *out = w;
    return true;
}

void workspace_free(Workspace *workspace) {
    aligned_free(workspace->memory);
    *workspace = {};
}

void eval_block(Block *block) { pool_run(block->pool, work_on_block, block); }

void init_state(const Model *model, float *state) {
    memset(state, 0, static_cast<size_t>(model->state_len) * sizeof(float));
    if (model->version != Version::k4) return;
    for (uint32_t i = 0; i < model->n_layer; ++i) {
        float *p = state + model->layer_state * i + 2 * static_cast<size_t>(model->n_embd) +
                   2 * static_cast<size_t>(model->n_att);
        for (uint32_t c = 0; c < model->n_att; ++c) p[c] = -1e30f;  // the running maximum of keys: below any
    }
}

Part::Range Part::share(uint32_t n) const {
    const uint64_t units = units_of(n, kSlice);
    return {cut(units * index / threads, kSlice, n), cut(units * (index + 1) / threads, kSlice, n)};
}

uint32_t Part::head_unit() const { return lcm(model->head_size, kSlice); }

void Part::norm(const float *w, const float *b, Range tokens, Range c) const {
    if (c.size() == 0) return;
    for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
        const float *x = row(work->x, t);
        float mean, scale;
        k->moments(x, model->n_embd, block->layer_norm_eps, &mean, &scale);
        k->normalize(x + c.begin, mean, scale, w + c.begin, b + c.begin, row(work->normed, t) + c.begin, c.size());
    }
}

void Part::shift(const Activations &to, const float *mix, const float *more, uint32_t at, Range tokens, Range c) const {
    for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
        const float *before = t == 0 || block->begins[t] ? in(t) + at : row(work->normed, t - 1);
        k->shift(row(work->normed, t) + c.begin, before + c.begin, mix + c.begin,
                 more == nullptr ? nullptr : more + static_cast<size_t>(t) * work->ld + c.begin,
                 to.f + static_cast<size_t>(t) * to.stride + c.begin, c.size());
    }
}

void Part::keep_last(uint32_t at, Range c) const {
    for (uint32_t t = 0; t < count; ++t)
        if (t + 1 == count || block->states_out[t + 1] != block->states_out[t])
            memcpy(out(t) + at + c.begin, row(work->normed, t) + c.begin, c.size() * sizeof(float));
}

void Part::ready(const Activations &x, const Matrix &for_matrix, Range tokens, Range c) const {
    if (block->squares != nullptr) gather(x, for_matrix, tokens, c);
    if (!is_quantized(for_matrix.type) || c.size() == 0) return;
    k->quantize(&x, tokens.begin, tokens.end, count, c.begin, c.end);
}

void Part::gather(const Activations &x, const Matrix &for_matrix, Range tokens, Range c) const {
    double *sums = block->squares + gathered_columns(*layer) * number;
    for (const Gathered &each : kGathered) {
        const Matrix &matrix = layer->*each.matrix;
        if (matrix.data != nullptr && matrix.data == for_matrix.data) {
            for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
                const float *in = x.f + static_cast<size_t>(t) * x.stride;
                for (uint32_t i = c.begin; i < c.end; ++i)
                    sums[i] += static_cast<double>(in[i]) * static_cast<double>(in[i]);
            }
            return;
        }
        sums += matrix.cols;
    }
}

void Part::inputs(const float *w, const float *b, const float *const *mix, const Matrix *const *matrices, uint32_t n,
                  uint32_t at, Range c) const {
    each_tokens([&](Range t) {
        norm(w, b, t, c);
        for (uint32_t i = 0; i < n; ++i) {
            shift(work->in[i], mix[i], nullptr, at, t, c);
            ready(work->in[i], *matrices[i], t, c);
        }
    });
    keep_last(at, c);
}

void Part::matmul(const Matrix &w, const Activations &x, float *y, uint32_t ldy, Range rows) const {
    if (rows.size() != 0) k->matmul(&w, &x, count, rows.begin, rows.end, y, ldy, scratch());
}

void Part::regain(Range c) const {
    if (layer->gain == 1.0f) return;
    for (uint32_t t = 0; t < count; ++t)
        for (uint32_t i = c.begin; i < c.end; ++i) row(work->more, t)[i] *= layer->gain;
}

void Part::tanh(const Activations &x, Range c) const {
    for (uint32_t t = 0; t < count; ++t) k->tanh(x.f + static_cast<size_t>(t) * x.stride + c.begin, c.size());
}

void Part::output() const {
    barrier();
    each_piece(model->n_embd, kSlice, [&](Range c) {
        matmul(layer->o, work->att, work->more, work->ld, c);
        regain(c);
        for (uint32_t t = 0; t < count; ++t) k->add(row(work->x, t) + c.begin, row(work->more, t) + c.begin, c.size());
    });
    barrier();
}

void channel_mix(const Part &part) {
    const Layer &l = *part.layer;
    Workspace *work = part.work;
    const Model *model = part.model;
    const uint32_t at = model->n_embd;  // in the state
    const bool gated = l.ffn_r.data != nullptr;

    const Part::Range c = part.share(model->n_embd);
    const float *const mix[] = {l.ffn_mix_k, l.ffn_mix_r};
    const Matrix *const matrices[] = {&l.ffn_k, &l.ffn_r};
    part.inputs(l.ln2_w, l.ln2_b, mix, matrices, gated ? 2 : 1, at, c);
    part.barrier();

    part.each_row(matrices, [&](uint32_t i, Part::Range f) {
        if (i == 1) return part.matmul(l.ffn_r, work->in[1], work->r, work->ld, f);
        part.matmul(l.ffn_k, work->in[0], work->ffn.f, work->ffn.stride, f);
        for (uint32_t t = 0; t < part.count; ++t)
            part.k->relu_squared(work->ffn.f + static_cast<size_t>(t) * work->ffn.stride + f.begin, f.size());
        part.ready(work->ffn, l.ffn_v, f);
    });
    part.barrier();

    part.each_piece(model->n_embd, kSlice, [&](Part::Range d) {
        part.matmul(l.ffn_v, work->ffn, work->more, work->ld, d);
        part.regain(d);
        for (uint32_t t = 0; t < part.count; ++t) {
            float *x = part.row(work->x, t) + d.begin;
            const float *y = part.row(work->more, t) + d.begin;
            if (gated) part.k->add_gated(x, part.row(work->r, t) + d.begin, y, d.size());
            else part.k->add(x, y, d.size());
        }
    });
    part.barrier();
}

}  // namespace rwkvflow

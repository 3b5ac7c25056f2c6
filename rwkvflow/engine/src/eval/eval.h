// Evaluation of a block of tokens: every thread of the pool runs eval_block's work, in step. The tokens are pieces of
// one or several sequences, one sequence after the other. All are columns that all matrices are multiplied with at
// once; they differ in where a column's state comes from, and where it goes.
//
// A layer is a few phases with a barrier after each. In a phase columns (or a matrix's rows, which are the columns of
// its output) are cut into slices, and a thread works on one for all tokens of the block: so weights are read once a
// block, each by one thread, and the state of a channel or head is read and written by one. Where there is little to do
// the cut is fixed (share); rows of matrices, and heads, are handed out in pieces as threads get to them (each_piece,
// each_row). What a slice comes to does not depend on how slices are cut, nor on who works on one, so results do not
// depend on the number of threads, nor on how a sequence is cut into blocks, nor on what else is in a batch.
#pragma once

#include "base/pool.h"
#include "model/model.h"

namespace rwkvflow {

inline constexpr uint32_t kMaxBlock = kMostTokens;  // tokens evaluated together
inline constexpr uint32_t kHeadRows = 128;  // logits that a thread works on together, where there are several tokens'
inline constexpr uint32_t kNear = 512;      // columns that a thread works on for all tokens before it goes on to others
inline constexpr uint32_t kInputs = 7;      // Activations that the time mix needs at most
inline constexpr uint32_t kLow = 6;         // and those inside low-rank pairs

// Working memory for blocks of up to `tokens` tokens and for `threads` threads.
struct Workspace {
    uint32_t tokens, threads;
    void *memory;
    float *state;             // [state_len], where the caller wants none
    float *x;                 // [T, C] the residual stream
    float *normed;            // [T, C]
    Activations in[kInputs];  // [T, C] inputs of matrices
    Activations att;          // [T, A] input of the output matrix
    Activations ffn;          // [T, F]
    Activations low[kLow];    // [T, n_low] inside low-rank pairs
    char *scratch;            // scratch_stride bytes for each thread, for matrices
    uint64_t scratch_stride;
    float *strips;  // [threads][T, kHeadRows] logits on their way to different places
    uint32_t ld;    // floats between tokens in what follows: the larger of C and A, rounded up
    float *r, *k, *v, *g, *w, *a, *b, *kk, *v_first;  // [T, ld]
    float *more;                                      // [T, ld]
};

bool workspace_create(const Model *model, uint32_t tokens, uint32_t threads, Workspace *out, Error *error);
void workspace_free(Workspace *workspace);

struct Block {
    const Model *model;
    const Kernels *kernels;
    Pool *pool;
    Workspace *work;
    float group_norm_eps, layer_norm_eps;
    const uint32_t *tokens;
    uint32_t count;   // 1 .. work->tokens
    double *squares;  // where inputs of matrices are gathered, as gather.h has them, a layer after the other; or null
    // For each token: whether another sequence begins with it; the state it goes on from (inside a sequence: where the
    // token before it leaves its own), where the new one goes (which may be the same); where its logits go, and the
    // hidden vector [n_embd] that they are made from, or null. Nothing of another sequence overlaps states_out[t], but
    // where nobody reads.
    bool begins[kMaxBlock];
    const float *states_in[kMaxBlock];
    float *states_out[kMaxBlock];
    float *logits[kMaxBlock];
    float *hidden[kMaxBlock];
};

void eval_block(Block *block);

// The fresh state.
void init_state(const Model *model, float *state);

// What one thread sees of a block while it works on one layer.
struct Part {
    const Block *block;
    const Model *model;
    const Kernels *k;
    Workspace *work;
    const Layer *layer;
    uint32_t number;  // of the layer
    uint32_t index, threads;
    uint32_t count;     // tokens
    uint64_t state_at;  // where in a state the layer's is: [C] of the time mix, [C] of the feed-forward part, then the
                        // version's own
    uint32_t *turn;     // counts what is handed out in pieces; the same for every thread. See pool_take.

    struct Range {
        uint32_t begin, end;
        uint32_t size() const { return end - begin; }
    };
    // This thread's share of n columns, cut between blocks of kSlice: possibly empty.
    Range share(uint32_t n) const;
    // body(range) for pieces of so many units, until other threads have begun all that is left. A unit is some columns:
    // of several tokens few at a time, so that what one step has written is near when the next one reads it.
    template <typename Body>
    void each_units(uint32_t units, uint32_t columns, Body body) const {
        const uint32_t near = count == 1 ? units : columns < kNear ? kNear / columns : 1;
        for (Pieces p = {block->pool, index, ++*turn, units}; pool_take(&p);)
            for (uint32_t i = p.begin; i < p.end; i += near) body(Range{i, p.end - i < near ? p.end : i + near});
    }
    // The same for n columns, cut between units of them.
    template <typename Body>
    void each_piece(uint32_t n, uint32_t unit, Body body) const {
        each_units(units_of(n, unit), unit, [&](Range p) { body(Range{cut(p.begin, unit, n), cut(p.end, unit, n)}); });
    }
    // For the A columns, cut between heads and between blocks of kSlice.
    template <typename Body>
    void each_heads(Body body) const {
        each_piece(model->n_att, head_unit(), body);
    }
    // For the rows of some matrices, as if they were one: body(which, range of its rows). An absent matrix has none.
    template <uint32_t N, typename Body>
    void each_row(const Matrix *const (&matrices)[N], Body body) const {
        uint32_t all = 0;
        for (const Matrix *m : matrices) all += units_of(m->rows, kSlice);
        each_units(all, kSlice, [&](Range p) {
            uint32_t first = 0;
            for (uint32_t i = 0; i < N && first < p.end; ++i) {
                const uint32_t rows = matrices[i]->rows, units = units_of(rows, kSlice);
                if (p.begin < first + units)
                    body(i, Range{p.begin > first ? (p.begin - first) * kSlice : 0, cut(p.end - first, kSlice, rows)});
                first += units;
            }
        });
    }
    static uint32_t units_of(uint32_t n, uint32_t unit) { return n / unit + (n % unit != 0); }
    // Where so many units of n columns end.
    static uint32_t cut(uint64_t units, uint32_t unit, uint32_t n) {
        return units * unit < n ? static_cast<uint32_t>(units * unit) : n;
    }
    uint32_t head_unit() const;

    void barrier() const { pool_barrier(block->pool); }
    void *scratch() const { return work->scratch + work->scratch_stride * index; }
    const float *in(uint32_t t) const { return block->states_in[t] + state_at; }
    float *out(uint32_t t) const { return block->states_out[t] + state_at; }
    float *row(float *base, uint32_t t) const { return base + static_cast<size_t>(t) * work->ld; }

    // body(tokens) for a few tokens at a time, in order: so what one step has written for them is near when the next
    // one reads it.
    template <typename Body>
    void each_tokens(Body body) const {
        for (uint32_t t = 0; t < count; t += kTokenUnit)
            body(Range{t, count - t < kTokenUnit ? count : t + kTokenUnit});
    }
    Range all_tokens() const { return {0, count}; }
    // normed = layer norm of x for the columns of `c` of those tokens, with the weights given.
    void norm(const float *w, const float *b, Range tokens, Range c) const;
    // Token shift for the columns of c. What was before the first token of a sequence is in its state, at `at` floats
    // of the layer's; keep_last puts there what comes before the next, in each state that is kept.
    void shift(const Activations &to, const float *mix, const float *more, uint32_t at, Range tokens, Range c) const;
    void keep_last(uint32_t at, Range c) const;
    // Makes columns of c, which are complete, ready for a matrix of this type.
    void ready(const Activations &x, const Matrix &for_matrix, Range tokens, Range c) const;
    void ready(const Activations &x, const Matrix &for_matrix, Range c) const { ready(x, for_matrix, all_tokens(), c); }
    // Inputs of the first `n` matrices for the columns of c, from x: layer norm, token shift with the mix of each, and
    // ready for it.
    void inputs(const float *w, const float *b, const float *const *mix, const Matrix *const *matrices, uint32_t n,
                uint32_t at, Range c) const;
    void matmul(const Matrix &w, const Activations &x, float *y, uint32_t ldy, Range rows) const;
    // Adds the squares of those columns to the sums of that matrix, where it is one of gather.h's.
    void gather(const Activations &x, const Matrix &for_matrix, Range tokens, Range c) const;
    // The columns of `c` of work->more times the layer's gain.
    void regain(Range c) const;
    void tanh(const Activations &x, Range c) const;
    // Versions 5 and 6: the heads of the columns of a, from r, k, v and a decay (w->w a token where null) to att, with
    // the norm of each head; then times the gate where there is one.
    void heads5(Range a, const float *decay, bool gated) const;
    // x += O * att, with barriers around it; the end of every time mix.
    void output() const;
};

void time_mix_v4(const Part &part);
void time_mix_v5(const Part &part);
void time_mix_v6(const Part &part);
void time_mix_v7(const Part &part);
void channel_mix(const Part &part);  // 4 to 6: gated; 7: not

}  // namespace rwkvflow

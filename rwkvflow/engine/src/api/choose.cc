// Choosing tokens for many texts at once: arguments are checked here, and texts shared out among threads.
#include <string.h>

#include "api/context.h"
#include "base/memory.h"
#include "rwkvflow.h"

using namespace rwkvflow;

namespace {

// Texts for one thread: waking up another takes about as long as to choose a token or two.
constexpr size_t kAlone = 2;

// What threads share out: work(room, i) for each i below count.
template <typename Work>
struct Shared {
    const Work *work;
    ChoiceRoom *const *rooms;
    uint32_t threads;
    size_t count, next;

    static void run(void *argument, uint32_t index) {
        Shared *all = static_cast<Shared *>(argument);
        if (index >= all->threads) return;
        for (;;) {
            const size_t i = __atomic_fetch_add(&all->next, size_t{1}, __ATOMIC_RELAXED);
            if (i >= all->count) return;
            (*all->work)(all->rooms[index], i);
        }
    }
};

// Rooms for `threads` threads; false without the memory.
bool make_rooms(rwkv_context *ctx, uint32_t threads) {
    if (ctx->rooms == nullptr)
        ctx->rooms = static_cast<ChoiceRoom **>(calloc(pool_size(ctx->pool), sizeof *ctx->rooms));
    bool fine = ctx->rooms != nullptr;
    for (uint32_t i = 0; fine && i < threads; ++i) {
        if (ctx->rooms[i] == nullptr) ctx->rooms[i] = choice_room(ctx->model->n_vocab);
        fine = ctx->rooms[i] != nullptr;
    }
    return fine || fail(&ctx->error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory to choose tokens");
}

template <typename Work>
bool share_out(rwkv_context *ctx, size_t count, const Work &work) {
    const uint32_t size = pool_size(ctx->pool);
    const uint32_t threads = count <= kAlone ? 1 : count < size ? static_cast<uint32_t>(count) : size;
    if (!make_rooms(ctx, threads)) return false;
    Shared<Work> all = {&work, ctx->rooms, threads, count, 0};
    if (threads == 1) Shared<Work>::run(&all, 0);
    else pool_run(ctx->pool, Shared<Work>::run, &all);
    return true;
}

bool check(rwkv_context *ctx, const float *const *logits, size_t count, bool fine) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    fine = fine && logits != nullptr;
    for (size_t i = 0; fine && i < count; ++i) fine = logits[i] != nullptr;
    return fine || fail(&ctx->error, RWKV_ERROR_ARGS, "logits, samplers, tokens, or places for them are missing");
}

const uint32_t *allowed_of(const uint32_t *const *allowed, size_t i) {
    return allowed == nullptr ? nullptr : allowed[i];
}

bool copy_tallies(Tallies *to, const Tallies &from) {
    if (!to->reserve(from.count)) return false;
    if (from.count > 0) memcpy(to->all, from.all, from.count * sizeof(Tally));
    to->count = from.count;
    return true;
}

rwkvflow_sampler *no_sampler(rwkvflow_sampler *half_made) {
    rwkvflow_sampler_free(half_made);
    fail(global_error(), RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a sampler");
    return nullptr;
}

int by_token(const void *a, const void *b) {
    const uint32_t one = static_cast<const Tally *>(a)->token, two = static_cast<const Tally *>(b)->token;
    return one < two ? -1 : one > two ? 1 : 0;
}

bool real_setting(double value, double least, double most, double *out) {
    if (!(value >= least && value <= most)) return false;
    *out = value;
    return true;
}

bool set(rwkvflow_sampler *s, const char *name, double value) {
    if (strcmp(name, "temperature") == 0) return real_setting(value, 0, __DBL_MAX__, &s->temperature);
    if (strcmp(name, "top_p") == 0) return value > 0 && real_setting(value, 0, 1, &s->top_p);
    if (strcmp(name, "decay") == 0) return real_setting(value, 0, 1, &s->decay);
    if (strcmp(name, "presence") == 0) return real_setting(value, -kLargestPenalty, kLargestPenalty, &s->presence);
    if (strcmp(name, "frequency") == 0) return real_setting(value, -kLargestPenalty, kLargestPenalty, &s->frequency);
    double whole;
    if (strcmp(name, "top_k") != 0 || !real_setting(value, 0, 4294967295.0, &whole)) return false;
    s->top_k = static_cast<uint32_t>(whole);
    return static_cast<double>(s->top_k) == whole;
}

}  // namespace

struct rwkvflow_sampler *rwkvflow_sampler_create(uint64_t seed) {
    global_error()->flags = 0;
    void *memory = malloc(sizeof(rwkvflow_sampler));
    if (memory == nullptr) return no_sampler(nullptr);
    const rwkvflow_sampler fresh(seed);
    memcpy(memory, &fresh, sizeof fresh);
    return static_cast<rwkvflow_sampler *>(memory);
}

struct rwkvflow_sampler *rwkvflow_sampler_copy(const struct rwkvflow_sampler *sampler) {
    if (sampler == nullptr) {
        fail(global_error(), RWKV_ERROR_ARGS, "no sampler");
        return nullptr;
    }
    rwkvflow_sampler *copy = rwkvflow_sampler_create(0);
    if (copy == nullptr) return nullptr;
    memcpy(copy, sampler, sizeof *copy);
    copy->bias = copy->counts = Tallies();
    if (!copy_tallies(&copy->bias, sampler->bias) || !copy_tallies(&copy->counts, sampler->counts))
        return no_sampler(copy);
    return copy;
}

void rwkvflow_sampler_free(struct rwkvflow_sampler *sampler) {
    if (sampler == nullptr) return;
    free(sampler->bias.all);
    free(sampler->counts.all);
    free(sampler);
}

bool rwkvflow_sampler_set(struct rwkvflow_sampler *sampler, const char *name, double value) {
    Error *error = global_error();
    error->flags = 0;
    if (sampler == nullptr || name == nullptr) return fail(error, RWKV_ERROR_ARGS, "no sampler or no name");
    return set(sampler, name, value) ||
           fail(error, RWKV_ERROR_ARGS, "a sampler's %.80s cannot be set to %g", name, value);
}

bool rwkvflow_sampler_bias(struct rwkvflow_sampler *sampler, const uint32_t *tokens, const double *values,
                           size_t count) {
    Error *error = global_error();
    error->flags = 0;
    if (sampler == nullptr || (count > 0 && (tokens == nullptr || values == nullptr)))
        return fail(error, RWKV_ERROR_ARGS, "no sampler, or no bias");
    Tallies made;
    if (!made.reserve(count)) return fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a bias");
    for (size_t i = 0; i < count; ++i) made.all[made.count++] = {tokens[i], values[i]};
    if (count > 1) qsort(made.all, count, sizeof(Tally), by_token);
    for (size_t i = 0; i < count; ++i) {
        const Tally &each = made.all[i];
        const bool again = i > 0 && made.all[i - 1].token == each.token;
        if (!again && each.value >= -kLargestPenalty && each.value <= kLargestPenalty) continue;
        fail(error, RWKV_ERROR_ARGS, again ? "token %u has two biases" : "the bias of token %u is too large",
             each.token);
        free(made.all);
        return false;
    }
    free(sampler->bias.all);
    sampler->bias = made;
    return true;
}

void rwkvflow_sampler_forget(struct rwkvflow_sampler *sampler) {
    if (sampler != nullptr) sampler->counts.count = 0;
}

bool rwkvflow_choose(struct rwkv_context *ctx, struct rwkvflow_sampler *const *samplers, const float *const *logits,
                     const uint32_t *const *allowed, size_t count, uint32_t *tokens) {
    if (!check(ctx, logits, count, samplers != nullptr && tokens != nullptr)) return false;
    bool fine = true;
    size_t checked = 0;
    for (; fine && checked < count; ++checked) {
        rwkvflow_sampler *s = samplers[checked];
        if (s == nullptr || s->taken) {
            fine = fail(&ctx->error, RWKV_ERROR_ARGS, "text %zu of a batch has no sampler of its own", checked);
            break;
        }
        s->taken = true;
        if (!s->counts.reserve(s->penalizes() ? s->counts.count + 1 : 0))
            fine = fail(&ctx->error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory to count tokens");
    }
    for (size_t i = 0; i < checked; ++i) samplers[i]->taken = false;
    return fine && share_out(ctx, count, [=](ChoiceRoom *room, size_t i) {
               tokens[i] = choose(kernels(), room, samplers[i], logits[i], allowed_of(allowed, i));
           });
}

bool rwkvflow_logprobs(struct rwkv_context *ctx, const float *const *logits, const uint32_t *const *allowed,
                       const uint32_t *tokens, size_t count, double *logprobs, const uint32_t *tops,
                       uint32_t *const *top_tokens, double *const *top_logprobs) {
    bool fine = tokens != nullptr && logprobs != nullptr;
    for (size_t i = 0; fine && tops != nullptr && i < count; ++i)
        fine = tops[i] == 0 || (top_tokens != nullptr && top_logprobs != nullptr && top_tokens[i] != nullptr &&
                                top_logprobs[i] != nullptr);
    if (!check(ctx, logits, count, fine)) return false;
    for (size_t i = 0; i < count; ++i)
        if (tokens[i] >= ctx->model->n_vocab)
            return fail(&ctx->error, RWKV_ERROR_ARGS, "token %u at %zu: the vocabulary has %u", tokens[i], i,
                        ctx->model->n_vocab);
    return share_out(ctx, count, [=](ChoiceRoom *room, size_t i) {
        const uint32_t top = tops == nullptr ? 0 : tops[i];
        logprobs[i] = rate(kernels(), room, logits[i], allowed_of(allowed, i), tokens[i], top,
                           top == 0 ? nullptr : top_tokens[i], top == 0 ? nullptr : top_logprobs[i]);
    });
}

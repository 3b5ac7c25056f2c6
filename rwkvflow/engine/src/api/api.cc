// The C API: arguments are checked here, so that what is below can trust them.
#include <math.h>
#include <stdio.h>

#include "api/context.h"
#include "base/memory.h"
#include "base/processors.h"
#include "eval/batch.h"
#include "eval/gather.h"
#include "rwkvflow.h"

using namespace rwkvflow;

namespace {

rwkv_context *context_create(Model *model, uint32_t threads, Error *error) {
    rwkv_context *ctx = static_cast<rwkv_context *>(calloc(1, sizeof(rwkv_context)));
    if (ctx == nullptr) {
        fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a context");
        model_release(model);
        return nullptr;
    }
    ctx->model = model;
    ctx->error.print = global_print();
    ctx->group_norm_eps = 64e-5f;
    ctx->layer_norm_eps = model->layer_norm_eps;
    ctx->pool = pool_create(threads);
    if (ctx->pool == nullptr) {
        fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for %u threads", threads);
    } else if (workspace_create(model, 1, pool_size(ctx->pool), &ctx->one, error)) {
        return ctx;
    }
    rwkv_free(ctx);
    return nullptr;
}

// The workspace for a sequence of that length, or null with an error.
Workspace *workspace_for(rwkv_context *ctx, size_t length) {
    if (length == 1) return &ctx->one;
    if (ctx->many.tokens == 0 &&
        !workspace_create(ctx->model, kMaxBlock, pool_size(ctx->pool), &ctx->many, &ctx->error))
        return nullptr;
    return &ctx->many;
}

bool check_tokens(rwkv_context *ctx, const uint32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; ++i)
        if (tokens[i] >= ctx->model->n_vocab)
            return fail(&ctx->error, RWKV_ERROR_ARGS, "token %u at %zu: the vocabulary has %u", tokens[i], i,
                        ctx->model->n_vocab);
    return true;
}

Block block_for(rwkv_context *ctx, Workspace *work) {
    Block block = {};
    block.model = ctx->model;
    block.kernels = kernels();
    block.pool = ctx->pool;
    block.work = work;
    block.group_norm_eps = ctx->group_norm_eps;
    block.layer_norm_eps = ctx->layer_norm_eps;
    return block;
}

// With `squares` by the generic kernels: see gather.h.
bool evaluate(rwkv_context *ctx, const uint32_t *tokens, size_t length, const float *state_in, float *state_out,
              float *logits, double *squares = nullptr) {
    const Model *model = ctx->model;
    if (!check_tokens(ctx, tokens, length)) return false;
    Workspace *work = workspace_for(ctx, length);
    if (work == nullptr) return false;
    float *state = state_out != nullptr ? state_out : work->state;
    if (state_in == nullptr) {
        init_state(model, state);
        state_in = state;
    }
    Block block = block_for(ctx, work);
    block.squares = squares;
    if (squares != nullptr) block.kernels = &kKernelsGeneric;
    for (size_t done = 0; done < length; done += block.count) {
        const size_t left = length - done;
        block.tokens = tokens + done;
        block.count = left < work->tokens ? static_cast<uint32_t>(left) : work->tokens;
        for (uint32_t t = 0; t < block.count; ++t) {
            block.states_in[t] = done + t == 0 ? state_in : state;
            block.states_out[t] = state;
            block.logits[t] = done + t + 1 == length ? logits : nullptr;
        }
        eval_block(&block);
    }
    return true;
}

// The fresh state that all sequences of a batch can begin with, or null with an error.
const float *fresh_state(rwkv_context *ctx) {
    if (ctx->fresh != nullptr) return ctx->fresh;
    ctx->fresh = static_cast<float *>(aligned_zeroed(mul_sat(ctx->model->state_len, sizeof(float))));
    if (ctx->fresh == nullptr) fail(&ctx->error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a state");
    else init_state(ctx->model, ctx->fresh);
    return ctx->fresh;
}

bool evaluate(rwkv_context *ctx, const Sequences &what, size_t tokens) {
    if (!check_tokens(ctx, what.tokens, tokens)) return false;
    Workspace *work = workspace_for(ctx, tokens);
    const float *fresh = work == nullptr ? nullptr : fresh_state(ctx);
    if (fresh == nullptr) return false;
    Block block = block_for(ctx, work);
    return eval_sequences(&block, fresh, what, tokens, &ctx->error);
}

struct Option {
    const char *name;
    float rwkv_context::*value;
};
const Option kOptions[] = {{"group_norm_eps", &rwkv_context::group_norm_eps},
                           {"layer_norm_eps", &rwkv_context::layer_norm_eps}};

const Option *find_option(struct rwkv_context *ctx, const char *name) {
    if (ctx == nullptr || name == nullptr) {
        fail(global_error(), RWKV_ERROR_ARGS, "no context or no name");
        return nullptr;
    }
    ctx->error.flags = 0;
    for (const Option &option : kOptions)
        if (strcmp(option.name, name) == 0) return &option;
    fail(&ctx->error, RWKV_ERROR_ARGS, "no option %.80s", name);
    return nullptr;
}

}  // namespace

void rwkv_set_print_errors(struct rwkv_context *ctx, const bool print_errors) {
    if (ctx == nullptr) set_global_print(print_errors);
    else ctx->error.print = print_errors;
}

bool rwkv_get_print_errors(const struct rwkv_context *ctx) {
    return ctx == nullptr ? global_print() : ctx->error.print;
}

enum rwkv_error_flags rwkv_get_last_error(struct rwkv_context *ctx) {
    Error *error = ctx == nullptr ? global_error() : &ctx->error;
    const uint32_t flags = error->flags;
    error->flags = 0;
    return static_cast<rwkv_error_flags>(flags);
}

struct rwkv_context *rwkv_init_from_file(const char *model_file_path, const uint32_t n_threads, const uint32_t) {
    Error *error = global_error();
    error->flags = 0;
    if (model_file_path == nullptr || n_threads == 0) {
        fail(error, RWKV_ERROR_ARGS, "a path and at least one thread are needed");
        return nullptr;
    }
    Model *model = model_open(model_file_path, error);
    return model == nullptr ? nullptr : context_create(model, n_threads, error);
}

struct rwkv_context *rwkv_clone_context(struct rwkv_context *ctx, const uint32_t n_threads) {
    Error *error = global_error();
    error->flags = 0;
    if (ctx == nullptr || n_threads == 0) {
        fail(error, RWKV_ERROR_ARGS, "a context and at least one thread are needed");
        return nullptr;
    }
    model_retain(ctx->model);
    rwkv_context *clone = context_create(ctx->model, n_threads, error);
    if (clone == nullptr) return nullptr;
    clone->group_norm_eps = ctx->group_norm_eps;
    clone->layer_norm_eps = ctx->layer_norm_eps;
    clone->error.print = ctx->error.print;
    return clone;
}

bool rwkv_eval(struct rwkv_context *ctx, const uint32_t token, const float *state_in, float *state_out,
               float *logits_out) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    return evaluate(ctx, &token, 1, state_in, state_out, logits_out);
}

bool rwkv_eval_sequence(struct rwkv_context *ctx, const uint32_t *tokens, const size_t sequence_len,
                        const float *state_in, float *state_out, float *logits_out) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    if (sequence_len == 0) return fail(&ctx->error, RWKV_ERROR_ARGS, "a sequence of no tokens");
    if (tokens == nullptr) return workspace_for(ctx, sequence_len) != nullptr;
    return evaluate(ctx, tokens, sequence_len, state_in, state_out, logits_out);
}

// Pieces are cut by the engine anyway, and results do not depend on how.
bool rwkv_eval_sequence_in_chunks(struct rwkv_context *ctx, const uint32_t *tokens, const size_t sequence_len,
                                  const size_t chunk_size, const float *state_in, float *state_out, float *logits_out) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    if (chunk_size == 0) return fail(&ctx->error, RWKV_ERROR_ARGS, "chunks of no tokens");
    return rwkv_eval_sequence(ctx, tokens, sequence_len, state_in, state_out, logits_out);
}

size_t rwkv_get_n_vocab(const struct rwkv_context *ctx) { return ctx->model->n_vocab; }
size_t rwkv_get_n_embed(const struct rwkv_context *ctx) { return ctx->model->n_embd; }
size_t rwkv_get_n_layer(const struct rwkv_context *ctx) { return ctx->model->n_layer; }
size_t rwkv_get_state_len(const struct rwkv_context *ctx) { return static_cast<size_t>(ctx->model->state_len); }
size_t rwkv_get_logits_len(const struct rwkv_context *ctx) { return ctx->model->n_vocab; }
uint32_t rwkv_get_state_buffer_element_count(const struct rwkv_context *ctx) {
    return static_cast<uint32_t>(ctx->model->state_len);
}
uint32_t rwkv_get_logits_buffer_element_count(const struct rwkv_context *ctx) { return ctx->model->n_vocab; }

void rwkv_init_state(const struct rwkv_context *ctx, float *state) { init_state(ctx->model, state); }

void rwkv_free(struct rwkv_context *ctx) {
    if (ctx == nullptr) return;
    for (uint32_t i = 0; ctx->rooms != nullptr && i < pool_size(ctx->pool); ++i) aligned_free(ctx->rooms[i]);
    free(ctx->rooms);
    pool_free(ctx->pool);
    workspace_free(&ctx->one);
    workspace_free(&ctx->many);
    aligned_free(ctx->fresh);
    model_release(ctx->model);
    free(ctx);
}

const char *rwkv_get_system_info_string(void) {
    static thread_local char text[160];
    size_t count, used = 0;
    const KernelSet *sets = kernel_sets(&count);
    for (size_t i = 0; i < count && used < sizeof text; ++i)
        if (sets[i].table != &kKernelsGeneric)
            used += static_cast<size_t>(
                snprintf(text + used, sizeof text - used, "%s=%d ", sets[i].label, sets[i].runs() ? 1 : 0));
    if (used < sizeof text) snprintf(text + used, sizeof text - used, "KERNELS=%s", kernels()->name);
    return text;
}

bool rwkvflow_eval_batch(struct rwkv_context *ctx, const uint32_t *tokens, size_t count, const float *const *states_in,
                         float *const *states_out, float *const *logits_out) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    if (tokens == nullptr || count == 0) return fail(&ctx->error, RWKV_ERROR_ARGS, "a batch of no tokens");
    return evaluate(ctx, {tokens, nullptr, count, states_in, states_out, logits_out, nullptr}, count);
}

bool rwkvflow_eval_sequences(struct rwkv_context *ctx, const uint32_t *tokens, const size_t *lengths, size_t count,
                             const float *const *states_in, float *const *states_out, float *const *logits_out,
                             float *const *hidden_out) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    size_t all = 0;
    bool fine = tokens != nullptr && lengths != nullptr && count != 0;
    for (size_t i = 0; fine && i < count; ++i) {
        fine = lengths[i] != 0 && lengths[i] <= SIZE_MAX / sizeof(uintptr_t) - all;
        all += lengths[i];
    }
    if (!fine) return fail(&ctx->error, RWKV_ERROR_ARGS, "no sequences, or a sequence of no tokens");
    return evaluate(ctx, {tokens, lengths, count, states_in, states_out, logits_out, hidden_out}, all);
}

uint64_t rwkvflow_importance_len(const struct rwkv_context *ctx) {
    return mul_sat(gathered_columns(ctx->model->layers[0]), ctx->model->n_layer);
}

bool rwkvflow_importance_part(const struct rwkv_context *ctx, uint64_t index, const char **name, uint64_t *columns) {
    for (const Gathered &each : kGathered) {
        const Matrix &matrix = ctx->model->layers[0].*each.matrix;
        if (matrix.data == nullptr || index-- != 0) continue;
        *name = each.name;
        *columns = matrix.cols;
        return true;
    }
    return false;
}

bool rwkvflow_importance_add(struct rwkv_context *ctx, const uint32_t *tokens, size_t count, double *sums) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    if (tokens == nullptr || count == 0 || sums == nullptr)
        return fail(&ctx->error, RWKV_ERROR_ARGS, "no tokens, or no place for the sums");
    return evaluate(ctx, tokens, count, nullptr, nullptr, nullptr, sums);
}

bool rwkvflow_set_option(struct rwkv_context *ctx, const char *name, double value) {
    const Option *option = find_option(ctx, name);
    if (option == nullptr) return false;
    if (!(value > 0) || value > 1) return fail(&ctx->error, RWKV_ERROR_ARGS, "%s cannot be %g", name, value);
    ctx->*option->value = static_cast<float>(value);
    return true;
}

bool rwkvflow_get_option(struct rwkv_context *ctx, const char *name, double *value) {
    const Option *option = find_option(ctx, name);
    if (option == nullptr) return false;
    if (value == nullptr) return fail(&ctx->error, RWKV_ERROR_ARGS, "no place for the value");
    *value = static_cast<double>(ctx->*option->value);
    return true;
}

const char *rwkvflow_get_last_message(const struct rwkv_context *ctx) {
    return ctx == nullptr ? global_error()->message : ctx->error.message;
}

const char *rwkvflow_get_version(const struct rwkv_context *ctx) { return version_name(ctx->model->version); }
const char *rwkvflow_get_kernels(void) { return kernels()->name; }

uint32_t rwkvflow_default_threads(void) {
    const uint32_t threads = threads_here();
    return threads < kMaxThreads ? threads : kMaxThreads;
}

struct rwkvflow_file {
    File file;
};

struct rwkvflow_file *rwkvflow_file_open(const char *path) {
    Error *error = global_error();
    error->flags = 0;
    rwkvflow_file *out = static_cast<rwkvflow_file *>(calloc(1, sizeof(rwkvflow_file)));
    if (path == nullptr || out == nullptr) {
        fail(error, path == nullptr ? RWKV_ERROR_ARGS : RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no path or no memory");
    } else if (file_open(path, &out->file, error)) {
        return out;
    }
    free(out);
    return nullptr;
}

void rwkvflow_file_close(struct rwkvflow_file *file) {
    if (file == nullptr) return;
    file_close(&file->file);
    free(file);
}

void rwkvflow_file_header(const struct rwkvflow_file *file, int32_t header[6]) {
    memcpy(header, file->file.header, 24);
}
uint64_t rwkvflow_file_tensor_count(const struct rwkvflow_file *file) { return file->file.count; }

bool rwkvflow_file_tensor(const struct rwkvflow_file *file, uint64_t index, struct rwkvflow_tensor *out) {
    if (index >= file->file.count) return false;
    const Tensor &tensor = file->file.tensors[index];
    *out = {tensor.name,   tensor.type, tensor.n_dims, {tensor.dims[0], tensor.dims[1], tensor.dims[2], 1},
            tensor.offset, tensor.bytes};
    return true;
}

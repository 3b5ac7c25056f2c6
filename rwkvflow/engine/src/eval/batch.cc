// One token each of many sequences, in one pass over the weights.
#include "eval/batch.h"

#include "base/memory.h"

namespace rwkvflow {

namespace {

int by_address(const void *a, const void *b) {
    const uintptr_t one = *static_cast<const uintptr_t *>(a), two = *static_cast<const uintptr_t *>(b);
    return one < two ? -1 : one > two ? 1 : 0;
}

// How many of the sorted addresses are below `to`.
size_t below(const uintptr_t *sorted, size_t count, uintptr_t to) {
    size_t low = 0, high = count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (sorted[middle] < to) low = middle + 1;
        else high = middle;
    }
    return low;
}

// A state that is written must be nobody else's: what is read there would depend on who comes first.
bool check_states(const Model *model, const float *const *in, float *const *out, size_t count, Error *error) {
    if (out == nullptr) return true;
    const uintptr_t bytes = static_cast<uintptr_t>(model->state_len) * sizeof(float);
    uintptr_t *written = static_cast<uintptr_t *>(calloc(count, sizeof(uintptr_t)));
    if (written == nullptr)
        return fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a batch of %zu", count);
    size_t n = 0;
    for (size_t i = 0; i < count; ++i)
        if (out[i] != nullptr) written[n++] = reinterpret_cast<uintptr_t>(out[i]);
    qsort(written, n, sizeof *written, by_address);
    bool fine = true;
    for (size_t i = 1; fine && i < n; ++i)
        if (written[i] - written[i - 1] < bytes)
            fine = fail(error, RWKV_ERROR_ARGS, "two states of a batch are written to one place");
    for (size_t i = 0; fine && in != nullptr && i < count; ++i) {
        if (in[i] == nullptr) continue;
        const uintptr_t read = reinterpret_cast<uintptr_t>(in[i]);
        // Of those written, which do not overlap each other, at most two overlap this one: its own is the only one
        // allowed.
        for (size_t at = below(written, n, read < bytes ? 0 : read - bytes + 1);
             fine && at < n && written[at] < read + bytes; ++at)
            if (written[at] != read || reinterpret_cast<uintptr_t>(out[i]) != read)
                fine = fail(error, RWKV_ERROR_ARGS, "state %zu of a batch is read where another one is written", i);
    }
    free(written);
    return fine;
}

}  // namespace

bool eval_batch(Block *block, const float *fresh, const uint32_t *tokens, size_t count, const float *const *states_in,
                float *const *states_out, float *const *logits, Error *error) {
    if (!check_states(block->model, states_in, states_out, count, error)) return false;
    block->batch = true;
    for (size_t done = 0; done < count; done += block->count) {
        const size_t left = count - done;
        block->tokens = tokens + done;
        block->count = left < block->work->tokens ? static_cast<uint32_t>(left) : block->work->tokens;
        for (uint32_t t = 0; t < block->count; ++t) {
            const size_t i = done + t;
            const float *in = states_in == nullptr ? nullptr : states_in[i];
            float *out = states_out == nullptr ? nullptr : states_out[i];
            block->states_in[t] = in != nullptr ? in : fresh;
            block->states_out[t] = out != nullptr ? out : block->work->state;  // where nobody reads
            block->logits[t] = logits == nullptr ? nullptr : logits[i];
        }
        eval_block(block);
    }
    return true;
}

}  // namespace rwkvflow

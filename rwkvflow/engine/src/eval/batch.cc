// Tokens of many sequences, in one pass over the weights.
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

// A state that is written must be nobody else's: what is read there would depend on who comes first. `tokens` is how
// many there are in all.
bool check_states(const Model *model, const Sequences &what, size_t tokens, Error *error) {
    if (what.states_out == nullptr) return true;
    const uintptr_t bytes = static_cast<uintptr_t>(model->state_len) * sizeof(float);
    uintptr_t *written = static_cast<uintptr_t *>(calloc(tokens, sizeof(uintptr_t)));
    if (written == nullptr)
        return fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a batch of %zu", tokens);
    size_t n = 0;
    for (size_t i = 0; i < tokens; ++i)
        if (what.states_out[i] != nullptr) written[n++] = reinterpret_cast<uintptr_t>(what.states_out[i]);
    qsort(written, n, sizeof *written, by_address);
    bool fine = true;
    for (size_t i = 1; fine && i < n; ++i)
        if (written[i] - written[i - 1] < bytes)
            fine = fail(error, RWKV_ERROR_ARGS, "two states of a batch are written to one place");
    size_t first = 0;  // token of the sequence
    for (size_t i = 0; fine && what.states_in != nullptr && i < what.count; first += what.length(i), ++i) {
        if (what.states_in[i] == nullptr) continue;
        const uintptr_t read = reinterpret_cast<uintptr_t>(what.states_in[i]);
        // Of those written, which do not overlap each other, at most two overlap this one: its own is the only one
        // allowed.
        for (size_t at = below(written, n, read < bytes ? 0 : read - bytes + 1);
             fine && at < n && written[at] < read + bytes; ++at) {
            bool own = false;
            for (size_t t = first; t < first + what.length(i); ++t)
                own |= written[at] == read && reinterpret_cast<uintptr_t>(what.states_out[t]) == read;
            if (!own)
                fine = fail(error, RWKV_ERROR_ARGS, "state %zu of a batch is read where another one is written", i);
        }
    }
    free(written);
    return fine;
}

}  // namespace

bool eval_sequences(Block *block, const float *fresh, const Sequences &what, size_t tokens, Error *error) {
    if (!check_states(block->model, what, tokens, error)) return false;
    size_t sequence = 0, end = what.length(0);  // the sequence of the next token, and the token behind its last one
    size_t kept = 0;                            // the next token whose state is wanted, or the sequence's end
    bool begins = true;
    const float *before = nullptr;
    for (size_t done = 0; done < tokens; done += block->count) {
        const size_t left = tokens - done;
        block->tokens = what.tokens + done;
        block->count = left < block->work->tokens ? static_cast<uint32_t>(left) : block->work->tokens;
        for (uint32_t t = 0; t < block->count; ++t) {
            const size_t i = done + t;
            if (kept < i) kept = i;
            while (kept < end && (what.states_out == nullptr || what.states_out[kept] == nullptr)) ++kept;
            if (begins) {
                const float *in = what.states_in == nullptr ? nullptr : what.states_in[sequence];
                before = in != nullptr ? in : fresh;
            }
            // A state that nobody wants goes where the next one of the sequence will be, or where nobody reads.
            float *out = kept < end ? what.states_out[kept] : block->work->state;
            block->begins[t] = begins;
            block->states_in[t] = before;
            block->states_out[t] = out;
            block->logits[t] = what.logits == nullptr ? nullptr : what.logits[i];
            block->hidden[t] = what.hidden == nullptr ? nullptr : what.hidden[i];
            before = out;
            begins = i + 1 == end;
            if (begins && ++sequence < what.count) end += what.length(sequence);
        }
        eval_block(block);
    }
    return true;
}

}  // namespace rwkvflow

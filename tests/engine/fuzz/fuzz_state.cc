// libFuzzer over saved states: whatever the bytes are, they are a state of this model or refused, with nothing written.
// Needs the path of a model in RWKV_FUZZ_MODEL. What the digest at the end must be is known here: else no change would
// come past it.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "rwkvflow.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

namespace {

rwkv_context *model;
float *state, *logits, *evaluated;
size_t n_state, n_logits;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    rwkv_set_print_errors(nullptr, false);
    const char *path = getenv("RWKV_FUZZ_MODEL");
    model = path == nullptr ? nullptr : rwkv_init_from_file(path, 1, 0);
    if (model == nullptr) {
        fprintf(stderr, "RWKV_FUZZ_MODEL names no model\n");
        exit(1);
    }
    n_state = rwkv_get_state_len(model) * sizeof(float);
    n_logits = rwkv_get_logits_len(model) * sizeof(float);
    // Exactly as large as they must be: one float too many is the sanitizer's to find.
    state = static_cast<float *>(malloc(n_state));
    logits = static_cast<float *>(malloc(n_logits));
    evaluated = static_cast<float *>(malloc(n_logits));
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size > 32 && seed % 4 != 0) {
        rwkvflow::Sha256 digest;
        digest.add(data, size - 32);
        digest.end(data + size - 32);
    }
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t tokens = 77;
    memset(state, 0x5a, n_state);
    memset(logits, 0x5a, n_logits);
    const bool fine = rwkvflow_state_unpack(model, data, size, state, logits, &tokens);
    const bool checked = rwkvflow_state_unpack(model, data, size, nullptr, nullptr, nullptr);
    if (fine) {
        uint8_t *again = static_cast<uint8_t *>(malloc(size));
        if (!checked || size != rwkvflow_state_bytes(model, true)) abort();
        if (!rwkvflow_state_pack(model, state, logits, tokens, again, size) || memcmp(again, data, size) != 0) abort();
        free(again);
        if (!rwkv_eval(model, 0, state, state, evaluated)) abort();  // whatever the numbers are
    } else {
        if (rwkvflow_get_last_message(model)[0] == 0 || tokens != 77) abort();
        for (size_t i = 0; i < n_state; ++i)
            if (reinterpret_cast<uint8_t *>(state)[i] != 0x5a) abort();
    }
    return 0;
}

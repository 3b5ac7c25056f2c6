// libFuzzer over GGUF files: whatever the bytes are, opening gives a context or an error, and a vocabulary or an error;
// what opens is evaluated and listed, and its words are encoded. Linux only: files are memory (memfd).
//
// The index stands in front and everything in it is a number of 4 or 8 bytes, or a text behind one; so most changes put
// likely numbers there, anywhere, as all places are near one.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rwkvflow.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

namespace {

struct Random {
    uint64_t state;
    uint32_t below(size_t limit) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>((state >> 33) % limit);
    }
};

constexpr uint64_t kLikely[] = {0,
                                1,
                                2,
                                3,
                                4,
                                5,
                                6,
                                7,
                                8,
                                9,
                                10,
                                12,
                                14,
                                16,
                                20,
                                23,
                                30,
                                31,
                                32,
                                33,
                                64,
                                255,
                                256,
                                1 << 16,
                                1u << 20,
                                1u << 24,
                                1u << 31,
                                0x7fffffffu,
                                0xffffffffu,
                                uint64_t{1} << 32,
                                uint64_t{1} << 61,
                                uint64_t{1} << 63,
                                ~uint64_t{0}};
const char *const kTexts[] = {"rwkv6.block_count",
                              "rwkv7.wkv.head_size",
                              "general.alignment",
                              "split.count",
                              "tokenizer.ggml.tokens",
                              "tokenizer.ggml.token_type",
                              "blk.0.time_mix_key.weight",
                              "blk.1.time_mix_lerp_fused.weight",
                              "token_embd.weight",
                              "\\x0",
                              "\\"};

void change(uint8_t *data, size_t size, Random *random) {
    const size_t index = size < 12288 ? size : 12288;  // where it ends in the seeds, nearly
    if (index < 16) return;
    const size_t at = random->below(index - 8);
    switch (random->below(4)) {
        case 0: {
            const char *text = kTexts[random->below(sizeof kTexts / sizeof kTexts[0])];
            const size_t length = strlen(text);
            if (at + length <= size) memcpy(data + at, text, length);
            return;
        }
        case 1: data[at] = static_cast<uint8_t>(data[at] + random->below(5) - 2); return;
        default: {
            const uint64_t value = kLikely[random->below(sizeof kLikely / sizeof kLikely[0])];
            memcpy(data + at, &value, random->below(2) == 0 ? 4 : 8);
        }
    }
}

void use(rwkv_context *ctx) {
    float *state = static_cast<float *>(malloc(rwkv_get_state_len(ctx) * sizeof(float)));
    float *logits = static_cast<float *>(malloc(rwkv_get_logits_len(ctx) * sizeof(float)));
    const uint32_t last = static_cast<uint32_t>(rwkv_get_n_vocab(ctx)) - 1, tokens[3] = {last, 0, last / 2};
    if (state != nullptr && logits != nullptr) {
        rwkv_eval(ctx, last, nullptr, state, logits);
        rwkv_eval_sequence(ctx, tokens, 3, state, state, logits);
    }
    free(state);
    free(logits);
}

void list(const char *path) {
    rwkvflow_file *file = rwkvflow_file_open(path);
    if (file == nullptr) return;
    rwkvflow_tensor tensor;
    for (uint64_t i = 0; rwkvflow_file_tensor(file, i, &tensor); ++i)
        if (strlen(tensor.name) == 0 || tensor.n_dims == 0 || tensor.n_dims > 4) abort();
    rwkvflow_file_close(file);
}

void read_words(const uint8_t *data, size_t size) {
    rwkvflow_tokenizer *words = rwkvflow_tokenizer_from_memory(data, size);
    if (words == nullptr) {
        if (rwkv_get_last_error(nullptr) == RWKV_ERROR_NONE || rwkvflow_get_last_message(nullptr)[0] == 0) abort();
        return;
    }
    const uint32_t count = rwkvflow_tokenizer_size(words);
    for (uint32_t id = 0; id < count && id < 400; ++id) {
        const char *piece;
        size_t length, some;
        if (!rwkvflow_tokenizer_piece(words, id, &piece, &length)) continue;
        uint32_t ids[2];
        if (length > 0 && !rwkvflow_tokenizer_encode(words, piece, length, ids, 2, &some)) abort();
    }
    rwkvflow_tokenizer_free(words);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    rwkv_set_print_errors(nullptr, false);
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    Random random{seed};
    if (size == 0 || random.below(8) == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (random.below(16) == 0) return random.below(size + 1);
    for (uint32_t left = 1 + random.below(3); left > 0; --left) change(data, size, &random);
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int handle = -1;
    static char path[64];
    if (size < 4 || memcmp(data, "GGUF", 4) != 0) return 0;  // others have fuzzers of their own
    if (handle < 0) {
        handle = memfd_create("model", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", handle);
    }
    if (ftruncate(handle, 0) != 0 || pwrite(handle, data, size, 0) != static_cast<ssize_t>(size)) abort();
    list(path);
    rwkv_context *ctx = rwkv_init_from_file(path, 1, 0);
    if (ctx == nullptr) {
        // A refusal says why.
        if (rwkv_get_last_error(nullptr) == RWKV_ERROR_NONE || rwkvflow_get_last_message(nullptr)[0] == 0) abort();
    } else {
        use(ctx);
        rwkv_free(ctx);
    }
    read_words(data, size);
    return 0;
}

// An adapter to llama.cpp whose shape does not change with llama.h: compiled beside it, called through ctypes by
// rwkvflow/worker/formats/gguf/llama.py. One context is used by one thread.
#include <stdint.h>
#include <string.h>

#include <string>
#include <vector>

#include "llama.h"

namespace {

constexpr uint32_t BATCH = 64;     // tokens of one llama_decode
constexpr size_t KEPT = 64 << 10;  // bytes of messages
std::string messages;              // warnings and errors since the last rwkvflow_llama_open

void listen(ggml_log_level level, const char *text, void *) {
    const bool wanted = level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_CONT;
    if (wanted && messages.size() < KEPT) messages += text;
}

struct Session {
    llama_model *model;
    llama_context *context;
    int32_t vocab;
    llama_pos at;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char *rwkvflow_llama_version() { return llama_version(); }

// What went wrong, or "".
EXPORT const char *rwkvflow_llama_messages() { return messages.c_str(); }

EXPORT void rwkvflow_llama_close(void *opened) {
    Session *session = (Session *)opened;
    if (session == nullptr) return;
    if (session->context != nullptr) llama_free(session->context);
    if (session->model != nullptr) llama_model_free(session->model);
    delete session;
}

// A model that is ready at the beginning of a text; null when llama.cpp refuses it.
EXPORT void *rwkvflow_llama_open(const char *path, uint32_t threads) {
    messages.clear();
    llama_log_set(listen, nullptr);
    llama_backend_init();
    llama_model_params how = llama_model_default_params();
    how.check_tensors = true;
    Session *session = new Session{llama_model_load_from_file(path, how), nullptr, 0, 0};
    if (session->model != nullptr) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 4096;
        params.n_batch = BATCH;
        params.n_ubatch = BATCH;
        params.n_threads = (int32_t)threads;
        params.n_threads_batch = (int32_t)threads;
        session->context = llama_init_from_model(session->model, params);
        session->vocab = llama_vocab_n_tokens(llama_model_get_vocab(session->model));
    }
    if (session->context != nullptr) return session;
    rwkvflow_llama_close(session);
    return nullptr;
}

EXPORT int32_t rwkvflow_llama_vocab(const void *opened) { return ((const Session *)opened)->vocab; }

// Back to the beginning of a text.
EXPORT void rwkvflow_llama_reset(void *opened) {
    Session *session = (Session *)opened;
    llama_memory_clear(llama_get_memory(session->context), true);
    session->at = 0;
}

// Reads `count` tokens on from where the text stands; `logits` gets a row of the vocabulary's size for each of them.
// 0, or what llama_decode answered.
EXPORT int32_t rwkvflow_llama_eval(void *opened, const int32_t *tokens, uint32_t count, float *logits) {
    Session *session = (Session *)opened;
    llama_batch batch = llama_batch_init(BATCH, 0, 1);
    int32_t status = 0;
    for (uint32_t done = 0; done < count && status == 0; done += (uint32_t)batch.n_tokens) {
        batch.n_tokens = (int32_t)(count - done < BATCH ? count - done : BATCH);
        for (int32_t i = 0; i < batch.n_tokens; i++) {
            batch.token[i] = tokens[done + i];
            batch.pos[i] = session->at++;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        status = llama_decode(session->context, batch);
        for (int32_t i = 0; i < batch.n_tokens && status == 0; i++) {
            const float *row = llama_get_logits_ith(session->context, i);
            if (row == nullptr) {
                status = -100;
                break;
            }
            memcpy(logits + (size_t)(done + i) * session->vocab, row, sizeof(float) * session->vocab);
        }
    }
    llama_batch_free(batch);
    return status;
}

// Token ids of a text; how many there are, also where more than `most`.
EXPORT int32_t rwkvflow_llama_tokenize(const void *opened, const char *text, int32_t length, int32_t *out,
                                       int32_t most) {
    const Session *session = (const Session *)opened;
    const int32_t found = llama_tokenize(llama_model_get_vocab(session->model), text, length, out, most, false, false);
    return found < 0 ? -found : found;
}

// The bytes that a token stands for; how many, or below 0.
EXPORT int32_t rwkvflow_llama_piece(const void *opened, int32_t token, char *out, int32_t most) {
    const Session *session = (const Session *)opened;
    return llama_token_to_piece(llama_model_get_vocab(session->model), token, out, most, 0, true);
}

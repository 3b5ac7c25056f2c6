// Measures llama.cpp when told to, so that it can take turns with another engine: `llama-turns MODEL THREADS` answers
// each line "decode N" or "prefill N" on its input with the seconds that N tokens took, one by one or at once.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

namespace {

llama_context *context;
llama_pos at = 0;

// Reads `count` tokens in one call; logits of the last only, as a program that generates text wants them.
bool read(int32_t count, int32_t vocabulary) {
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int32_t i = 0; i < count; i++, at++) {
        batch.token[i] = static_cast<llama_token>((static_cast<uint64_t>(at) * 2654435761u + 17) %
                                                  static_cast<uint64_t>(vocabulary));
        batch.pos[i] = at;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i + 1 == count;
    }
    const bool fine = llama_decode(context, batch) == 0;
    llama_synchronize(context);
    llama_batch_free(batch);
    return fine;
}

void quiet(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    const auto begin = std::chrono::steady_clock::now();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 4096;
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    context = llama_init_from_model(model, params);
    if (context == nullptr) return 1;
    const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const std::chrono::duration<double> load = std::chrono::steady_clock::now() - begin;
    printf("%.9f\n", load.count());
    fflush(stdout);
    char kind[16];
    int count;
    while (scanf("%15s %d", kind, &count) == 2) {
        const bool many = strcmp(kind, "prefill") == 0;
        if (many || at + count > 4000) {
            llama_memory_clear(llama_get_memory(context), true);
            at = 0;
        }
        const auto start = std::chrono::steady_clock::now();
        bool fine = true;
        if (many) fine = read(count, vocabulary);
        else
            for (int i = 0; i < count && fine; i++) fine = read(1, vocabulary);
        if (!fine) return 1;
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        printf("%.9f\n", spent.count());
        fflush(stdout);
    }
    llama_free(context);
    llama_model_free(model);
    return 0;
}

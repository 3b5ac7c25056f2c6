/* The C API of rwkv.cpp's rwkv.h: the same names, signatures, flags and meaning, so that existing bindings load this
 * library unchanged. What we add is in rwkvflow.h.
 *
 * Model files are rwkv.cpp's ggml ".bin" files (magic "ggmf", versions 100 and 101) of RWKV 4, 5.0, 5.1, 5.2, 6 and 7,
 * and llama.cpp's GGUF files of rwkv6 and rwkv7.
 * A context may be used by one thread at a time; clones share the weights and may run side by side. Nothing here
 * aborts, and nothing is printed unless error printing is on (it is by default, as in rwkv.cpp).
 */
#ifndef RWKV_H
#define RWKV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(RWKV_SHARED)
#if defined(_WIN32)
#if defined(RWKV_BUILD)
#define RWKV_API __declspec(dllexport)
#else
#define RWKV_API __declspec(dllimport)
#endif
#else
#define RWKV_API __attribute__((visibility("default")))
#endif
#else
#define RWKV_API
#endif

/* "ggmf" read as a little-endian 32-bit number. */
#define RWKV_FILE_MAGIC 0x67676d66
#define RWKV_FILE_VERSION_0 100
#define RWKV_FILE_VERSION_1 101
#define RWKV_FILE_VERSION_MIN RWKV_FILE_VERSION_0
#define RWKV_FILE_VERSION_MAX RWKV_FILE_VERSION_1
#define RWKV_FILE_VERSION RWKV_FILE_VERSION_MAX

#if defined(__cplusplus)
extern "C" {
#endif

/* An error is one value of the first group (where) combined with one of the second (what). */
enum rwkv_error_flags {
    RWKV_ERROR_NONE = 0,

    RWKV_ERROR_ARGS = 1 << 8,
    RWKV_ERROR_FILE = 2 << 8,
    RWKV_ERROR_MODEL = 3 << 8,
    RWKV_ERROR_MODEL_PARAMS = 4 << 8,
    RWKV_ERROR_GRAPH = 5 << 8,
    RWKV_ERROR_CTX = 6 << 8,

    RWKV_ERROR_ALLOC = 1,
    RWKV_ERROR_FILE_OPEN = 2,
    RWKV_ERROR_FILE_STAT = 3,
    RWKV_ERROR_FILE_READ = 4,
    RWKV_ERROR_FILE_WRITE = 5,
    RWKV_ERROR_FILE_MAGIC = 6,
    RWKV_ERROR_FILE_VERSION = 7,
    RWKV_ERROR_DATA_TYPE = 8,
    RWKV_ERROR_UNSUPPORTED = 9,
    RWKV_ERROR_SHAPE = 10,
    RWKV_ERROR_DIMENSION = 11,
    RWKV_ERROR_KEY = 12,
    RWKV_ERROR_DATA = 13,
    RWKV_ERROR_PARAM_MISSING = 14
};

/* A loaded model (shared between clones) together with threads and working memory of its own. */
struct rwkv_context;

/* Whether messages of errors go to stderr. With a null ctx: for loading and quantizing, and the default of new
 * contexts. */
RWKV_API void rwkv_set_print_errors(struct rwkv_context *ctx, const bool print_errors);
RWKV_API bool rwkv_get_print_errors(const struct rwkv_context *ctx);

/* Returns the flags of the last error and clears them. With a null ctx: errors of functions that had no context. */
RWKV_API enum rwkv_error_flags rwkv_get_last_error(struct rwkv_context *ctx);

/* Opens a model file. n_threads: at least 1. n_gpu_layers: accepted and ignored. Null on an error. */
RWKV_API struct rwkv_context *rwkv_init_from_file(const char *model_file_path, const uint32_t n_threads,
                                                  const uint32_t n_gpu_layers);

/* A second context on the same weights, with threads and working memory of its own. Freed like any other. */
RWKV_API struct rwkv_context *rwkv_clone_context(struct rwkv_context *ctx, const uint32_t n_threads);

/* Evaluates one token, 0 <= token < rwkv_get_n_vocab().
 * state_in: rwkv_get_state_len() floats, or null for a fresh state. state_out: the same number, or null; may be
 * state_in. logits_out: rwkv_get_logits_len() floats, or null (which saves the time for the head matrix). False on an
 * error. */
RWKV_API bool rwkv_eval(struct rwkv_context *ctx, const uint32_t token, const float *state_in, float *state_out,
                        float *logits_out);

/* Evaluates sequence_len tokens; logits are those after the last one. tokens may be null: nothing is evaluated then,
 * but memory for the sequence is made ready. */
RWKV_API bool rwkv_eval_sequence(struct rwkv_context *ctx, const uint32_t *tokens, const size_t sequence_len,
                                 const float *state_in, float *state_out, float *logits_out);

/* The same in pieces of at most chunk_size (at least 1) tokens. */
RWKV_API bool rwkv_eval_sequence_in_chunks(struct rwkv_context *ctx, const uint32_t *tokens, const size_t sequence_len,
                                           const size_t chunk_size, const float *state_in, float *state_out,
                                           float *logits_out);

/* Sizes of the model; state_len and logits_len count floats. */
RWKV_API size_t rwkv_get_n_vocab(const struct rwkv_context *ctx);
RWKV_API size_t rwkv_get_n_embed(const struct rwkv_context *ctx);
RWKV_API size_t rwkv_get_n_layer(const struct rwkv_context *ctx);
RWKV_API size_t rwkv_get_state_len(const struct rwkv_context *ctx);
RWKV_API size_t rwkv_get_logits_len(const struct rwkv_context *ctx);

/* Writes the fresh state, the one that a null state_in stands for. */
RWKV_API void rwkv_init_state(const struct rwkv_context *ctx, float *state);

/* Frees a context; the model goes with the last one that uses it. Null is allowed. */
RWKV_API void rwkv_free(struct rwkv_context *ctx);

/* Quantizes an FP32 or FP16 file; format_name is Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K or Q5_K. False on
 * an error. */
RWKV_API bool rwkv_quantize_model_file(const char *model_file_path_in, const char *model_file_path_out,
                                       const char *format_name);

/* What the library runs on: "AVX2=1 AVX512=0 ..." and the kernels in use. Valid until the thread's next call. */
RWKV_API const char *rwkv_get_system_info_string(void);

#if defined(__cplusplus)
}
#endif

#endif

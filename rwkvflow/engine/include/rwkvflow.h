/* What librwkv has beyond rwkv.cpp's API. All functions may be called from any thread. */
#ifndef RWKVFLOW_H
#define RWKVFLOW_H

#include "rwkv.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* Types of elements, with rwkv.cpp's numbers; no file of its own has BF16. */
enum rwkvflow_type {
    RWKVFLOW_F32 = 0,
    RWKVFLOW_F16 = 1,
    RWKVFLOW_Q4_0 = 2,
    RWKVFLOW_Q4_1 = 3,
    RWKVFLOW_Q5_0 = 7,
    RWKVFLOW_Q5_1 = 8,
    RWKVFLOW_Q8_0 = 9,
    RWKVFLOW_BF16 = 30
};

/* Bytes of a row of cols elements; 0 for an unknown type, or where cols is no multiple of the type's block. */
RWKV_API uint64_t rwkvflow_row_bytes(int32_t type, uint64_t cols);

/* Encodes rows x cols elements from src (type F32, F16 or BF16) into dst (any type), both without gaps.
 * via_f16: round to F16 first, as a file quantized from an F16 file was. The bytes do not depend on the CPU or on the
 * number of threads. Returns 0; 1 when all is written and a value, or the scale of a block, is an infinity or NaN; below 0
 * for arguments that make no sense. */
RWKV_API int32_t rwkvflow_encode(int32_t src_type, int32_t dst_type, int32_t via_f16, const void *src, void *dst,
                                 uint64_t rows, uint64_t cols, uint32_t threads);

/* How many of count F32, F16 or BF16 values are infinite or NaN; 0 for another type. */
RWKV_API uint64_t rwkvflow_count_not_finite(int32_t src_type, const void *src, uint64_t count);

/* Evaluates one token each of count sequences, in one pass over the weights.
 * states_in[i]: the state that sequence i goes on from, or null for a fresh one; states_in null: all are fresh.
 * states_out[i]: where its new state goes, or null; may be states_in[i], and overlaps no other state that is read or written.
 * Several states_in may be one. logits_out[i]: rwkv_get_logits_len() floats, or null, which saves time. states_out and
 * logits_out may be null as a whole. Logits overlap nothing.
 * What a sequence comes to is, bit for bit, what rwkv_eval makes of it: whatever else is in the batch, and for any number of
 * threads. False on an error (ARGS, CTX | ALLOC), and then nothing was evaluated. */
RWKV_API bool rwkvflow_eval_batch(struct rwkv_context *ctx, const uint32_t *tokens, size_t count,
                                  const float *const *states_in, float *const *states_out, float *const *logits_out);

/* Options of a context, which clones take over. Both are what is added to a variance, above 0 and at most 1:
 *   "group_norm_eps"  in the norm of each head, versions 5.0 to 7; 64e-5 unless set. Models of versions 5.x that were trained
 *                     before it became that want 1e-5.
 *   "layer_norm_eps"  in all layer norms; 1e-5 unless set.
 * False for an unknown name or a value that makes no sense. A value is kept as a float. */
RWKV_API bool rwkvflow_set_option(struct rwkv_context *ctx, const char *name, double value);
RWKV_API bool rwkvflow_get_option(struct rwkv_context *ctx, const char *name, double *value);

/* The message of the last error of a context, or of calls without one (null ctx); "" when there was none. Unlike the
 * flags it stays until the next error. Valid until then. */
RWKV_API const char *rwkvflow_get_last_message(const struct rwkv_context *ctx);

/* "4", "5.0", "5.1", "5.2", "6" or "7". */
RWKV_API const char *rwkvflow_get_version(const struct rwkv_context *ctx);

/* The kernels that this process uses: "generic", "avx2", "avx512" or "neon". */
RWKV_API const char *rwkvflow_get_kernels(void);

/* Tensors of a file, for inspection: rwkvflow_file_open returns null on an error (message with a null ctx). */
struct rwkvflow_file;
struct rwkvflow_tensor {
    const char *name;
    int32_t type;
    uint32_t n_dims;
    uint64_t dims[4]; /* PyTorch's order: rows first */
    uint64_t offset;  /* of the data in the file */
    uint64_t bytes;
};
RWKV_API struct rwkvflow_file *rwkvflow_file_open(const char *path);
RWKV_API void rwkvflow_file_close(struct rwkvflow_file *file);
/* The six numbers of the header: magic, version, n_vocab, n_embd, n_layer, type. */
RWKV_API void rwkvflow_file_header(const struct rwkvflow_file *file, int32_t header[6]);
RWKV_API uint64_t rwkvflow_file_tensor_count(const struct rwkvflow_file *file);
RWKV_API bool rwkvflow_file_tensor(const struct rwkvflow_file *file, uint64_t index, struct rwkvflow_tensor *out);

/* Names that older bindings of rwkv.cpp load. */
RWKV_API uint32_t rwkv_get_state_buffer_element_count(const struct rwkv_context *ctx);
RWKV_API uint32_t rwkv_get_logits_buffer_element_count(const struct rwkv_context *ctx);

#if defined(__cplusplus)
}
#endif

#endif

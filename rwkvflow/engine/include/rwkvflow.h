/* What librwkv has beyond rwkv.cpp's API. All functions may be called from any thread. */
#ifndef RWKVFLOW_H
#define RWKVFLOW_H

#include "rwkv.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* Types of elements, with rwkv.cpp's numbers (rwkv_file_format.inc since 2025); those that its files do not have, BF16
 * and the IQ types, with ggml's. Files of rwkvflow 0.1 had Q4_K as 12 and Q5_K as 13. */
enum rwkvflow_type {
    RWKVFLOW_F32 = 0,
    RWKVFLOW_F16 = 1,
    RWKVFLOW_Q4_0 = 2,
    RWKVFLOW_Q4_1 = 3,
    RWKVFLOW_Q5_0 = 7,
    RWKVFLOW_Q5_1 = 8,
    RWKVFLOW_Q8_0 = 9,
    RWKVFLOW_Q2_K = 11,
    RWKVFLOW_Q3_K = 12,
    RWKVFLOW_Q4_K = 13,
    RWKVFLOW_Q5_K = 14,
    RWKVFLOW_Q6_K = 15,
    RWKVFLOW_IQ3_XXS = 18,
    RWKVFLOW_IQ4_NL = 20,
    RWKVFLOW_IQ3_S = 21,
    RWKVFLOW_IQ4_XS = 23,
    RWKVFLOW_BF16 = 30
};

/* Bytes of a row of cols elements; 0 for an unknown type, or where cols is no multiple of the type's block. */
RWKV_API uint64_t rwkvflow_row_bytes(int32_t type, uint64_t cols);

/* Encodes rows x cols elements from src (type F32, F16 or BF16) into dst (any type), both without gaps.
 * via_f16: round to F16 first, as a file quantized from an F16 file was. The bytes do not depend on the CPU.
 * threads is of no effect: it is there for callers of earlier versions. Any number of threads may call. Returns 0; 1
 * when all is written and a value, or the scale of a block, is an infinity or NaN; below 0 for arguments that make no
 * sense. */
RWKV_API int32_t rwkvflow_encode(int32_t src_type, int32_t dst_type, int32_t via_f16, const void *src, void *dst,
                                 uint64_t rows, uint64_t cols, uint32_t threads);

/* The same with an importance matrix: `importance` has a weight for each of the `cols` columns, at least 0 and finite,
 * and every quantized type but Q8_0 takes another search, llama.cpp's. Null is rwkvflow_encode. IQ3_XXS and IQ3_S are
 * meant for one. -3 for importance that is negative or not finite, or all 0 in a block of a row that it decides on. */
RWKV_API int32_t rwkvflow_encode_weighted(int32_t src_type, int32_t dst_type, int32_t via_f16, const void *src,
                                          void *dst, uint64_t rows, uint64_t cols, const float *importance);

/* How many of count F32, F16 or BF16 values are infinite or NaN; 0 for another type. */
RWKV_API uint64_t rwkvflow_count_not_finite(int32_t src_type, const void *src, uint64_t count);

/* Evaluates one token each of count sequences, in one pass over the weights.
 * states_in[i]: the state that sequence i goes on from, or null for a fresh one; states_in null: all are fresh.
 * states_out[i]: where its new state goes, or null; may be states_in[i], and overlaps no other state that is read or
 * written. Several states_in may be one. logits_out[i]: rwkv_get_logits_len() floats, or null, which saves time.
 * states_out and logits_out may be null as a whole. Logits overlap nothing. What a sequence comes to is, bit for bit,
 * what rwkv_eval makes of it: whatever else is in the batch, and for any number of threads. False on an error (ARGS,
 * CTX | ALLOC), and then nothing was evaluated. */
RWKV_API bool rwkvflow_eval_batch(struct rwkv_context *ctx, const uint32_t *tokens, size_t count,
                                  const float *const *states_in, float *const *states_out, float *const *logits_out);

/* The same for the next lengths[i] tokens of each of count sequences, which stand one after the other in `tokens`: each
 * at least one. states_in has one entry a sequence; states_out, logits_out and hidden_out have one a token, null where
 * it is not wanted, so that a sequence can be gone back to after any of its tokens. A token's state may go where its
 * own sequence's state came from. hidden_out[i]: rwkv_get_n_embed() floats, the vector after the last layer norm that
 * the logits are made from. Everything is, bit for bit, what rwkv_eval makes of the tokens one by one. */
RWKV_API bool rwkvflow_eval_sequences(struct rwkv_context *ctx, const uint32_t *tokens, const size_t *lengths,
                                      size_t count, const float *const *states_in, float *const *states_out,
                                      float *const *logits_out, float *const *hidden_out);

/* Choosing tokens. The same logits, settings and seed choose the same tokens on every machine, with any kernels and any
 * number of threads, whatever else is in the batch. One choice:
 *   1. what the sampler's bias says is added to logits, as doubles; then a token that was chosen before loses
 *      presence + frequency times its count from its logit; counts are multiplied by decay at every token
 *   2. temperature 0: the largest, of equal ones the lowest id; that is all then
 *   3. weights are exp((logit - largest) / temperature), 0 below exp(-700); tokens come in the order of their logits,
 *      the largest first, of equal ones the lowest id
 *   4. top_k above 0: the first of them, their weights added up in this order; else all, added up in the order of ids
 *   5. top_p below 1: the shortest beginning whose weights add up to at least top_p times that sum
 *   6. a random number below 1 times the sum of what is left: the first token where the running sum exceeds it
 * A sampler is the memory of one text: settings, random numbers, counts. It needs no context; one thread at a time. */
struct rwkvflow_sampler;
/* Null without the memory (CTX | ALLOC). Settings are those of rwkvflow_sampler_set that it names first. */
RWKV_API struct rwkvflow_sampler *rwkvflow_sampler_create(uint64_t seed);
/* One that would choose the same from here on. Null as above, or for null (ARGS). */
RWKV_API struct rwkvflow_sampler *rwkvflow_sampler_copy(const struct rwkvflow_sampler *sampler);
RWKV_API void rwkvflow_sampler_free(struct rwkvflow_sampler *sampler);
/* "temperature" 1: 0 or more; "top_p" 0.7: above 0 and at most 1; "top_k" 0, which is all: a whole number below 2^32;
 * "presence" and "frequency" 0: at most 1e300 either way; "decay" 0.996: from 0 to 1. What is chosen is counted only
 * while one of the penalties is not 0. False for an unknown name or a value that makes no sense (ARGS). */
RWKV_API bool rwkvflow_sampler_set(struct rwkvflow_sampler *sampler, const char *name, double value);
/* What is added to the logits of `count` different tokens, in place of what was before: at most 1e300 either way.
 * Tokens beyond a model's vocabulary are of no effect. False for ARGS, or without the memory, and then nothing was
 * changed. */
RWKV_API bool rwkvflow_sampler_bias(struct rwkvflow_sampler *sampler, const uint32_t *tokens, const double *values,
                                    size_t count);
/* Nothing was chosen yet; the random numbers go on. */
RWKV_API void rwkvflow_sampler_forget(struct rwkvflow_sampler *sampler);

#define RWKVFLOW_NO_TOKEN UINT32_MAX
/* The next token of each of count texts, by different samplers. logits[i]: rwkv_get_logits_len() floats, which are only
 * read; several may be one. allowed[i]: a bit for each id, lowest first in words of 32, set where it may be chosen,
 * such as those that have a token, or that a grammar allows; null: all, and so is allowed null. tokens[i] is
 * RWKVFLOW_NO_TOKEN where a logit is not finite or nothing is allowed; that sampler is as it was. The threads of the
 * context share the texts. False on an error (ARGS, CTX | ALLOC), and then nothing was chosen. */
RWKV_API bool rwkvflow_choose(struct rwkv_context *ctx, struct rwkvflow_sampler *const *samplers,
                              const float *const *logits, const uint32_t *const *allowed, size_t count,
                              uint32_t *tokens);
/* How likely tokens are: natural logarithms of exp(logit) / the sum of all, in double precision, the same on every
 * machine. logprobs[i] is that of tokens[i] after logits[i]; NaN where a logit is not finite. tops[i]: how many of the
 * likeliest tokens are asked for, of those that allowed[i] has, in order, of equal ones the lowest id first; they go to
 * top_tokens[i] and top_logprobs[i], filled up with RWKVFLOW_NO_TOKEN and NaN. allowed, and the last three arguments
 * together, may be null. Otherwise as rwkvflow_choose. */
RWKV_API bool rwkvflow_logprobs(struct rwkv_context *ctx, const float *const *logits, const uint32_t *const *allowed,
                                const uint32_t *tokens, size_t count, double *logprobs, const uint32_t *tops,
                                uint32_t *const *top_tokens, double *const *top_logprobs);

/* Importance of columns, as quantizers weigh errors by: for each matrix of a layer that they take, sums over tokens of
 * the squares of its inputs. The parts of a layer come one after the other, and all layers have the same: `index`
 * counts them from 0, *name is the matrix's without "blocks.N.", *columns how many numbers it has; false beyond the
 * last. rwkvflow_importance_len: numbers of all layers together. */
RWKV_API uint64_t rwkvflow_importance_len(const struct rwkv_context *ctx);
RWKV_API bool rwkvflow_importance_part(const struct rwkv_context *ctx, uint64_t index, const char **name,
                                       uint64_t *columns);
/* Reads the tokens from a fresh state and adds to `sums`, rwkvflow_importance_len() doubles. Slower than reading
 * otherwise: arithmetic and order of sums are fixed, so the bits are the same on every machine, with any kernels and
 * any number of threads. False on an error, as rwkv_eval_sequence. */
RWKV_API bool rwkvflow_importance_add(struct rwkv_context *ctx, const uint32_t *tokens, size_t count, double *sums);

/* Options of a context, which clones take over. Both are what is added to a variance, above 0 and at most 1:
 *   "group_norm_eps"  in the norm of each head, versions 5.0 to 7; 64e-5 unless set. Models of versions 5.x that were
 * trained before it became that want 1e-5. "layer_norm_eps"  in all layer norms; 1e-5 unless set. False for an unknown
 * name or a value that makes no sense. A value is kept as a float. */
RWKV_API bool rwkvflow_set_option(struct rwkv_context *ctx, const char *name, double value);
RWKV_API bool rwkvflow_get_option(struct rwkv_context *ctx, const char *name, double *value);

/* Saved states: a state, the logits after it where they are wanted, and whose they are. In a file or in memory the same
 * bytes, little-endian: 0   8  "RWKVSTAT" 8   4  uint32 1, of this layout; 4 bytes of zeros 16  24  uint64 each: floats
 * of the state, floats of the logits (0 where they are not there), tokens read so far 40  16  "librwkv", the name of
 * the state's own layout, and 16 bytes version of the model, as rwkvflow_get_version says; ASCII filled up with zeros
 *     72  32  fingerprint of the model file: the sha256 of its size (uint64) and of all of it, or, above 4 MiB, of 1024
 * pieces of 4096 bytes, piece i at i * (size - 4096) / 1023, rounded down; of a GGUF in parts the sha256 of theirs, one
 * after the other
 *    104      the state, then the logits, float32
 *    end  32  sha256 of everything before it
 * A fingerprint tells files apart; it is no proof against forgery. States of another file, damaged and cut ones are
 * refused: FILE with FILE_MAGIC, FILE_VERSION, DIMENSION (another size or version), KEY (another file) or DATA
 * (damaged, or logits are asked for that are not there), and nothing is written then. */

/* Bytes of one. */
RWKV_API uint64_t rwkvflow_state_bytes(const struct rwkv_context *ctx, bool with_logits);
/* state: rwkv_get_state_len() floats; logits: rwkv_get_logits_len(), or null; tokens: how many were read so far, for
 * whoever wants to know. bytes must be what rwkvflow_state_bytes says. */
RWKV_API bool rwkvflow_state_pack(struct rwkv_context *ctx, const float *state, const float *logits, uint64_t tokens,
                                  void *out, uint64_t bytes);
/* state, logits and tokens may be null where they are not wanted; all null only checks. */
RWKV_API bool rwkvflow_state_unpack(struct rwkv_context *ctx, const void *data, uint64_t bytes, float *state,
                                    float *logits, uint64_t *tokens);
/* The same with a file, which is written whole or not at all (as PATH.part, then renamed). */
RWKV_API bool rwkvflow_state_save(struct rwkv_context *ctx, const char *path, const float *state, const float *logits,
                                  uint64_t tokens);
RWKV_API bool rwkvflow_state_load(struct rwkv_context *ctx, const char *path, float *state, float *logits,
                                  uint64_t *tokens);

/* Tokenizers. They need no context, one serves any number of threads at once, and errors are those of a null ctx. Texts
 * are bytes with a length; they need not be UTF-8, and may hold zeros. */
struct rwkvflow_tokenizer;
/* One token a byte. */
RWKV_API struct rwkvflow_tokenizer *rwkvflow_tokenizer_bytes(void);
/* A file of one of these kinds, or its bytes (which need not last). Null on an error: FILE with FILE_OPEN,
 * FILE_READ, DATA (another kind, damaged, or more than 64 MiB), UNSUPPORTED or ALLOC. "world"           RWKV's
 * vocabularies, rwkv_vocab_v20230424.txt: a line is an id, a Python literal of a text or of bytes, and its length in
 * bytes. The longest token that fits is taken. "tokenizer.json"  byte-level BPE in the form of PyPI's `tokenizers`,
 * such as 20B_tokenizer.json of the Pile models: model BPE, pre_tokenizer and decoder ByteLevel, normalizer NFC (of
 * Unicode 16) or none, added tokens. What else it may ask for is UNSUPPORTED. No special tokens are added to a text; in
 * a text they are found. A GGUF whose tokenizer is "rwkv" holds a vocabulary like World's, and is "world"; one whose
 * tokenizer is "gpt2" and whose tokenizer.ggml.pre is "gpt-2" or "olmo" (with NFC) holds byte-level BPE, and is
 * "tokenizer.json". Other names are UNSUPPORTED. A GGUF may be of any size; of one in parts it is the first. */
RWKV_API struct rwkvflow_tokenizer *rwkvflow_tokenizer_open(const char *path);
RWKV_API struct rwkvflow_tokenizer *rwkvflow_tokenizer_from_memory(const void *data, uint64_t bytes);
RWKV_API void rwkvflow_tokenizer_free(struct rwkvflow_tokenizer *tokenizer);
/* "bytes", "world" or "tokenizer.json". */
RWKV_API const char *rwkvflow_tokenizer_kind(const struct rwkvflow_tokenizer *tokenizer);
/* 1 + the largest id: a model needs a vocabulary of at least that many. */
RWKV_API uint32_t rwkvflow_tokenizer_size(const struct rwkvflow_tokenizer *tokenizer);
/* Writes the first `room` of the text's tokens; *count is how many it has. tokens may be null where room is 0. A text
 * has no more World tokens and bytes than it has bytes. False for a byte that no token has (ARGS | DATA), or for want
 * of memory. */
RWKV_API bool rwkvflow_tokenizer_encode(const struct rwkvflow_tokenizer *tokenizer, const char *text, size_t size,
                                        uint32_t *tokens, size_t room, size_t *count);
/* Writes the first `room` bytes of the tokens' text, without a zero behind it; *size is how many it has. Special
 * tokens, such as the one that ends a text, are no text; an id without a token is the byte 0xff, which no text holds.
 */
RWKV_API bool rwkvflow_tokenizer_decode(const struct rwkvflow_tokenizer *tokenizer, const uint32_t *tokens,
                                        size_t count, char *text, size_t room, size_t *size);
/* The bytes of one token, which last as long as the tokenizer. A character may be cut in two between tokens. False,
 * with the byte 0xff, for an id without a token. */
RWKV_API bool rwkvflow_tokenizer_piece(const struct rwkvflow_tokenizer *tokenizer, uint32_t token, const char **data,
                                       size_t *size);
/* Writes the first `room` of the ids that have a token, in order; *count is how many have one. ids may be null where
 * room is 0. */
RWKV_API bool rwkvflow_tokenizer_ids(const struct rwkvflow_tokenizer *tokenizer, uint32_t *ids, size_t room,
                                     size_t *count);

/* The message of the last error of a context, or of calls without one (null ctx); "" when there was none. Unlike the
 * flags it stays until the next error. Valid until then. */
RWKV_API const char *rwkvflow_get_last_message(const struct rwkv_context *ctx);

/* "4", "5.0", "5.1", "5.2", "6" or "7". */
RWKV_API const char *rwkvflow_get_version(const struct rwkv_context *ctx);

/* The kernels that this process uses: "generic", or another set's name ("avx2"; the rwkv tool's info names all). All
 * sets but the generic one give the same bits, on any machine. */
RWKV_API const char *rwkvflow_get_kernels(void);

/* As many threads as a context is best given where nobody says: one for each physical core that the calling thread may
 * run on, without efficiency cores, and no more than a cgroup's quota has room for. Elsewhere than on Linux one for
 * each logical processor. Where cores are not all alike, threads of a context are kept on those that suit, and the
 * thread that evaluates for as long as it does; RWKV_PIN=0 in the environment leaves them where the system puts them.
 * No result depends on it. */
RWKV_API uint32_t rwkvflow_default_threads(void);

/* Tensors of a file, for inspection: rwkvflow_file_open returns null on an error (message with a null ctx). Those of a
 * GGUF have the names that a .bin would give them, and the header its magic and version. */
struct rwkvflow_file;
struct rwkvflow_tensor {
    const char *name;
    int32_t type;
    uint32_t n_dims;
    uint64_t dims[4]; /* PyTorch's order: rows first */
    uint64_t offset;  /* of the data in the file, or in its part */
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

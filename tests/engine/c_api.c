/* The C API from C, for the sanitizers.
 *   c_api check MODEL SCRATCH   everything once; prints "ok", or what was wrong
 *   c_api open                  reads paths from stdin; for each opens the file and, where that works, evaluates
 * tokens; prints "flags message" or "opened" c_api tokenizer             the same for vocabularies, which encode and
 * decode themselves */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rwkvflow.h"

#define CHECK(condition)                                   \
    do {                                                   \
        if (!(condition)) {                                \
            printf("line %d: %s\n", __LINE__, #condition); \
            return 1;                                      \
        }                                                  \
    } while (0)

struct side {
    struct rwkv_context *ctx;
    const uint32_t *tokens;
    size_t count;
    float *logits;
    bool fine;
};

static void *evaluate_aside(void *argument) {
    struct side *side = argument;
    side->fine = rwkv_eval_sequence(side->ctx, side->tokens, side->count, NULL, NULL, side->logits);
    return NULL;
}

/* Each sequence of a batch against the same alone; states and logits exactly as large as they must be. */
static int check_batch(struct rwkv_context *ctx, const uint32_t *tokens, size_t count) {
    const size_t n_state = rwkv_get_state_len(ctx), n_logits = rwkv_get_logits_len(ctx);
    float **states = calloc(count, sizeof *states), **after = calloc(count, sizeof *after);
    float **logits = calloc(count, sizeof *logits);
    float *state = malloc(n_state * sizeof(float)), *same = malloc(n_logits * sizeof(float));
    for (size_t i = 0; i < count; ++i) {
        if (i % 3 != 1) states[i] = malloc(n_state * sizeof(float));
        if (i % 3 == 0) CHECK(rwkv_eval(ctx, tokens[count - 1 - i], NULL, states[i], NULL));
        if (i % 3 == 2) rwkv_init_state(ctx, states[i]);
        if (i % 2 == 0) after[i] = i % 4 == 0 && states[i] != NULL ? states[i] : malloc(n_state * sizeof(float));
        if (i % 5 != 4) logits[i] = malloc(n_logits * sizeof(float));
    }
    CHECK(!rwkvflow_eval_batch(NULL, tokens, count, NULL, NULL, NULL));
    CHECK(!rwkvflow_eval_batch(ctx, NULL, count, NULL, NULL, NULL));
    CHECK(!rwkvflow_eval_batch(ctx, tokens, 0, NULL, NULL, NULL));
    const uint32_t wrong[2] = {0, (uint32_t)n_logits};
    CHECK(!rwkvflow_eval_batch(ctx, wrong, 2, NULL, NULL, NULL));
    CHECK(rwkv_get_last_error(ctx) == RWKV_ERROR_ARGS);
    float *const twice[2] = {state, state};
    CHECK(!rwkvflow_eval_batch(ctx, tokens, 2, NULL, twice, NULL));
    CHECK(rwkvflow_eval_batch(ctx, tokens, 2, NULL, NULL, NULL));
    CHECK(rwkvflow_eval_batch(ctx, tokens, 1, NULL, NULL, (float *const *)&same));

    const size_t lengths[3] = {1, count - 3, 2}, none[2] = {1, 0};
    float **every = calloc(count, sizeof *every);
    for (size_t i = 0; i < count; i += 2) every[i] = malloc(n_logits * sizeof(float));
    float *hidden[2] = {malloc(rwkv_get_n_embed(ctx) * sizeof(float)), NULL};
    CHECK(!rwkvflow_eval_sequences(NULL, tokens, lengths, 3, NULL, NULL, NULL, NULL));
    CHECK(!rwkvflow_eval_sequences(ctx, tokens, NULL, 3, NULL, NULL, NULL, NULL));
    CHECK(!rwkvflow_eval_sequences(ctx, tokens, none, 2, NULL, NULL, NULL, NULL));
    CHECK(rwkv_get_last_error(ctx) == RWKV_ERROR_ARGS);
    CHECK(rwkvflow_eval_sequences(ctx, tokens, lengths, 3, NULL, NULL, every, NULL));
    CHECK(rwkvflow_eval_sequences(ctx, tokens, lengths, 1, NULL, NULL, NULL, hidden));
    CHECK(rwkv_eval_sequence(ctx, tokens + 1, count - 3, NULL, state, same));
    if (count % 2 == 1)
        CHECK(every[count - 3] == NULL || memcmp(every[count - 3], same, n_logits * sizeof(float)) == 0);
    for (size_t i = 0; i < count; ++i) free(every[i]);
    free(every);
    free(hidden[0]);

    float **before = calloc(count, sizeof *before);
    for (size_t i = 0; i < count; ++i) {
        if (states[i] == NULL) continue;
        before[i] = malloc(n_state * sizeof(float));
        memcpy(before[i], states[i], n_state * sizeof(float));
    }
    CHECK(rwkvflow_eval_batch(ctx, tokens, count, (const float *const *)states, after, logits));
    for (size_t i = 0; i < count; ++i) {
        CHECK(rwkv_eval(ctx, tokens[i], before[i], state, same));
        CHECK(after[i] == NULL || memcmp(after[i], state, n_state * sizeof(float)) == 0);
        CHECK(logits[i] == NULL || memcmp(logits[i], same, n_logits * sizeof(float)) == 0);
        CHECK(states[i] == NULL || states[i] == after[i] || memcmp(states[i], before[i], n_state * sizeof(float)) == 0);
    }
    for (size_t i = 0; i < count; ++i) {
        if (after[i] != states[i]) free(after[i]);
        free(states[i]);
        free(before[i]);
        free(logits[i]);
    }
    free(states);
    free(after);
    free(before);
    free(logits);
    free(state);
    free(same);
    return 0;
}

/* Tokens chosen by several threads from logits, masks and places exactly as large as they must be. */
static int check_choices(struct rwkv_context *ctx) {
    enum { COUNT = 7, TOP = 5 };
    const size_t n = rwkv_get_logits_len(ctx), words = (n + 31) / 32;
    struct rwkvflow_sampler *samplers[COUNT], *copies[COUNT];
    float *logits[COUNT];
    uint32_t *allowed[COUNT], tokens[COUNT], again[COUNT], tops[COUNT], *best[COUNT];
    double logprobs[COUNT], *likely[COUNT];
    const uint32_t biased[3] = {7, 3, (uint32_t)n}, twice[2] = {3, 3};
    const double by[3] = {-1e300, 2.5, 1.0}, infinite[2] = {0, INFINITY};
    for (size_t i = 0; i < COUNT; ++i) {
        samplers[i] = rwkvflow_sampler_create(i);
        CHECK(samplers[i] != NULL && rwkvflow_sampler_set(samplers[i], "temperature", (double)i / 3));
        CHECK(rwkvflow_sampler_set(samplers[i], "top_p", i % 2 == 0 ? 1.0 : 0.9));
        CHECK(rwkvflow_sampler_set(samplers[i], "top_k", i % 3 == 0 ? 0 : (double)(i * n / 4)));
        CHECK(rwkvflow_sampler_set(samplers[i], "frequency", i < 5 ? 0.5 : 0.0));
        CHECK(rwkvflow_sampler_bias(samplers[i], biased, by, i % 4));
        logits[i] = malloc(n * sizeof(float));
        allowed[i] = i % 3 == 1 ? NULL : malloc(words * sizeof(uint32_t));
        for (size_t w = 0; allowed[i] != NULL && w < words; ++w) allowed[i][w] = 0xdeadbeef;
        tops[i] = i == 3 ? 0 : i == 4 ? (uint32_t)n + 3 : TOP;
        best[i] = i == 3 ? NULL : malloc(tops[i] * sizeof(uint32_t));
        likely[i] = i == 3 ? NULL : malloc(tops[i] * sizeof(double));
    }
    CHECK(!rwkvflow_sampler_set(NULL, "top_p", 1) && !rwkvflow_sampler_set(samplers[0], NULL, 1));
    CHECK(!rwkvflow_sampler_set(samplers[0], "presence", -INFINITY) && rwkvflow_sampler_copy(NULL) == NULL);
    CHECK(!rwkvflow_sampler_bias(samplers[1], twice, by, 2) &&
          !rwkvflow_sampler_bias(samplers[1], biased, infinite, 2));
    CHECK(!rwkvflow_sampler_bias(samplers[1], NULL, NULL, 1) && rwkvflow_sampler_bias(samplers[6], NULL, NULL, 0));
    rwkvflow_sampler_free(NULL);
    rwkvflow_sampler_forget(NULL);
    for (uint32_t round = 0; round < 40; ++round) {
        for (size_t i = 0; i < COUNT; ++i)
            CHECK(rwkv_eval(ctx, (uint32_t)((i + round * 5) % n), NULL, NULL, logits[i]));
        for (size_t i = 0; i < COUNT; ++i) CHECK((copies[i] = rwkvflow_sampler_copy(samplers[i])) != NULL);
        CHECK(rwkvflow_choose(ctx, samplers, (const float *const *)logits, (const uint32_t *const *)allowed, COUNT,
                              tokens));
        for (size_t i = COUNT; i-- > 0;) {
            CHECK(rwkvflow_choose(ctx, copies + i, (const float *const *)logits + i,
                                  (const uint32_t *const *)allowed + i, 1, again + i));
            CHECK(again[i] == tokens[i] && tokens[i] < n);
            CHECK(allowed[i] == NULL || (allowed[i][tokens[i] / 32] >> (tokens[i] % 32) & 1) == 1);
            rwkvflow_sampler_free(copies[i]);
        }
        CHECK(rwkvflow_logprobs(ctx, (const float *const *)logits, (const uint32_t *const *)allowed, tokens, COUNT,
                                logprobs, tops, best, likely));
        CHECK(logprobs[0] <= 0 && likely[0][0] >= likely[0][1] && best[4][n] == RWKVFLOW_NO_TOKEN);
        CHECK(rwkvflow_logprobs(ctx, (const float *const *)logits, NULL, tokens, COUNT, logprobs, NULL, NULL, NULL));
    }
    const uint32_t beyond = (uint32_t)n;
    struct rwkvflow_sampler *same[2] = {samplers[0], samplers[0]};
    CHECK(!rwkvflow_choose(NULL, samplers, (const float *const *)logits, NULL, 1, tokens));
    CHECK(!rwkvflow_choose(ctx, NULL, (const float *const *)logits, NULL, 1, tokens));
    CHECK(!rwkvflow_choose(ctx, same, (const float *const *)logits, NULL, 2, tokens));
    CHECK(rwkv_get_last_error(ctx) == RWKV_ERROR_ARGS);
    CHECK(!rwkvflow_choose(ctx, samplers, NULL, NULL, 1, tokens));
    CHECK(rwkvflow_choose(ctx, samplers, (const float *const *)logits, NULL, 0, tokens));
    CHECK(!rwkvflow_logprobs(ctx, (const float *const *)logits, NULL, &beyond, 1, logprobs, NULL, NULL, NULL));
    CHECK(!rwkvflow_logprobs(ctx, (const float *const *)logits, NULL, tokens, 1, logprobs, tops, NULL, NULL));
    logits[1][n - 1] = INFINITY;
    CHECK(rwkvflow_choose(ctx, samplers, (const float *const *)logits, NULL, COUNT, tokens));
    CHECK(tokens[1] == RWKVFLOW_NO_TOKEN && tokens[2] < n);
    for (size_t i = 0; i < COUNT; ++i) {
        rwkvflow_sampler_free(samplers[i]);
        free(logits[i]);
        free(allowed[i]);
        free(best[i]);
        free(likely[i]);
    }
    return 0;
}

/* A state packed, saved and damaged; buffers exactly as large as they must be. */
static int check_states(struct rwkv_context *ctx, const char *scratch) {
    const size_t n_state = rwkv_get_state_len(ctx), n_logits = rwkv_get_logits_len(ctx);
    float *state = malloc(n_state * sizeof(float)), *other = malloc(n_state * sizeof(float));
    float *logits = malloc(n_logits * sizeof(float)), *same = malloc(n_logits * sizeof(float));
    CHECK(rwkv_eval(ctx, 1, NULL, state, logits));
    const uint64_t bytes = rwkvflow_state_bytes(ctx, true), fewer = rwkvflow_state_bytes(ctx, false);
    CHECK(bytes == 136 + (n_state + n_logits) * sizeof(float) && fewer == 136 + n_state * sizeof(float));
    unsigned char *all = malloc(bytes), *bare = malloc(fewer);
    uint64_t tokens = 0;
    CHECK(!rwkvflow_state_pack(NULL, state, logits, 7, all, bytes) &&
          !rwkvflow_state_pack(ctx, NULL, logits, 7, all, bytes));
    CHECK(!rwkvflow_state_pack(ctx, state, logits, 7, all, fewer) &&
          !rwkvflow_state_pack(ctx, state, NULL, 7, all, bytes));
    CHECK(rwkv_get_last_error(ctx) == RWKV_ERROR_ARGS);
    CHECK(rwkvflow_state_pack(ctx, state, logits, 7, all, bytes) &&
          rwkvflow_state_pack(ctx, state, NULL, 8, bare, fewer));
    CHECK(rwkvflow_state_unpack(ctx, all, bytes, other, same, &tokens) && tokens == 7);
    CHECK(memcmp(state, other, n_state * sizeof(float)) == 0 && memcmp(logits, same, n_logits * sizeof(float)) == 0);
    CHECK(rwkvflow_state_unpack(ctx, bare, fewer, other, NULL, &tokens) && tokens == 8);
    CHECK(rwkvflow_state_unpack(ctx, bare, fewer, NULL, NULL, NULL));
    CHECK(!rwkvflow_state_unpack(ctx, bare, fewer, other, same, NULL));
    CHECK(rwkv_get_last_error(ctx) == (RWKV_ERROR_FILE | RWKV_ERROR_DATA));
    CHECK(!rwkvflow_state_unpack(ctx, NULL, 0, other, same, &tokens) &&
          !rwkvflow_state_unpack(NULL, all, bytes, other, same, &tokens));
    memset(other, 0x55, n_state * sizeof(float));
    const uint64_t places[] = {0,  7,  8,   12,  16,        24,         40,         47,
                               56, 72, 103, 104, bytes / 2, bytes - 33, bytes - 32, bytes - 1};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i) {
        all[places[i]] ^= 0x40;
        CHECK(!rwkvflow_state_unpack(ctx, all, bytes, other, same, &tokens));
        CHECK((rwkv_get_last_error(ctx) & 0xff00) == RWKV_ERROR_FILE && rwkvflow_get_last_message(ctx)[0] != 0);
        all[places[i]] ^= 0x40;
    }
    for (uint64_t cut = 0; cut < bytes; cut += cut < 140 ? 1 : 997) {
        unsigned char *part = malloc(cut + 1); /* what is behind it belongs to somebody else */
        memcpy(part, all, cut);
        CHECK(!rwkvflow_state_unpack(ctx, part, cut, other, same, &tokens));
        free(part);
    }
    for (size_t i = 0; i < n_state * sizeof(float); ++i) CHECK(((unsigned char *)other)[i] == 0x55);

    CHECK(rwkvflow_state_save(ctx, scratch, state, logits, 9));
    CHECK(rwkvflow_state_load(ctx, scratch, other, same, &tokens) && tokens == 9);
    CHECK(memcmp(state, other, n_state * sizeof(float)) == 0 && memcmp(logits, same, n_logits * sizeof(float)) == 0);
    CHECK(!rwkvflow_state_save(ctx, "/does/not/exist", state, logits, 9));
    CHECK(rwkv_get_last_error(ctx) == (RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN));
    CHECK(!rwkvflow_state_load(ctx, "/does/not/exist", other, same, &tokens) &&
          !rwkvflow_state_load(ctx, "/", other, same, &tokens));
    CHECK(!rwkvflow_state_load(ctx, NULL, other, same, &tokens) &&
          !rwkvflow_state_load(NULL, scratch, other, same, &tokens));
    FILE *file = fopen(scratch, "ab"); /* one byte too many */
    CHECK(file != NULL && fputc('x', file) == 'x' && fclose(file) == 0);
    CHECK(!rwkvflow_state_load(ctx, scratch, other, same, &tokens));
    struct rwkv_context *clone = rwkv_clone_context(ctx, 1);
    CHECK(rwkvflow_state_unpack(clone, all, bytes, other, same, &tokens));
    rwkv_free(clone);
    remove(scratch);
    free(state);
    free(other);
    free(logits);
    free(same);
    free(all);
    free(bare);
    return 0;
}

static const char kWorld[] =
    "1 'a' 1\n2 b'\\xc3' 1\r\n3 \"it's\" 4\n\n9 'ab' 2\n7 'it' 2\n5 'i' 1\n6 '\\u00e9' 2\n4 '\\x00' 1\n";

static int check_tokenizers(void) {
    uint32_t tokens[8];
    char text[8];
    const char *piece;
    size_t count, size;
    struct rwkvflow_tokenizer *t = rwkvflow_tokenizer_bytes();
    CHECK(t != NULL && strcmp(rwkvflow_tokenizer_kind(t), "bytes") == 0 && rwkvflow_tokenizer_size(t) == 256);
    CHECK(rwkvflow_tokenizer_encode(t, "a\0\xff", 3, tokens, 3, &count) && count == 3);
    CHECK(tokens[0] == 'a' && tokens[1] == 0 && tokens[2] == 255);
    CHECK(rwkvflow_tokenizer_decode(t, tokens, 3, text, 3, &size) && size == 3 && memcmp(text, "a\0\xff", 3) == 0);
    CHECK(!rwkvflow_tokenizer_piece(t, 256, &piece, &size) && size == 1 && piece[0] == '\xff');
    CHECK(rwkvflow_tokenizer_ids(t, NULL, 0, &count) && count == 256);
    CHECK(rwkvflow_tokenizer_ids(t, tokens, 3, &count) && count == 256 && tokens[0] == 0 && tokens[2] == 2);
    CHECK(!rwkvflow_tokenizer_ids(t, NULL, 1, &count) && !rwkvflow_tokenizer_ids(NULL, tokens, 3, &count) &&
          !rwkvflow_tokenizer_ids(t, tokens, 3, NULL));
    CHECK(rwkvflow_tokenizer_encode(t, NULL, 0, NULL, 0, &count) && count == 0);
    CHECK(!rwkvflow_tokenizer_encode(t, NULL, 1, tokens, 3, &count) &&
          !rwkvflow_tokenizer_encode(t, "a", 1, NULL, 1, &count));
    CHECK(!rwkvflow_tokenizer_encode(NULL, "a", 1, tokens, 1, &count) &&
          !rwkvflow_tokenizer_encode(t, "a", 1, tokens, 1, NULL));
    CHECK(!rwkvflow_tokenizer_decode(t, NULL, 1, text, 3, &size) &&
          !rwkvflow_tokenizer_decode(t, tokens, 1, NULL, 3, &size));
    rwkvflow_tokenizer_free(t);

    /* The bytes of the vocabulary need not last. */
    char *copy = malloc(sizeof kWorld - 1);
    memcpy(copy, kWorld, sizeof kWorld - 1);
    t = rwkvflow_tokenizer_from_memory(copy, sizeof kWorld - 1);
    free(copy);
    CHECK(t != NULL && strcmp(rwkvflow_tokenizer_kind(t), "world") == 0 && rwkvflow_tokenizer_size(t) == 10);
    CHECK(rwkvflow_tokenizer_encode(t, "it'sabit\xc3\xa9i", 11, tokens, 8, &count) && count == 5);
    CHECK(tokens[0] == 3 && tokens[1] == 9 && tokens[2] == 7 && tokens[3] == 6 && tokens[4] == 5);
    CHECK(rwkvflow_tokenizer_encode(t, "it'sab", 6, tokens, 1, &count) && count == 2); /* told, and not written */
    CHECK(!rwkvflow_tokenizer_encode(t, "ax", 2, tokens, 8, &count) && count == 0);
    CHECK(rwkv_get_last_error(NULL) == (RWKV_ERROR_ARGS | RWKV_ERROR_DATA));
    const uint32_t some[4] = {3, 0, 8, 4};
    CHECK(rwkvflow_tokenizer_decode(t, some, 4, text, 6, &size) && size == 6 && memcmp(text, "it's\xff\0", 6) == 0);
    CHECK(rwkvflow_tokenizer_decode(t, some, 4, text, 2, &size) && size == 6);
    CHECK(rwkvflow_tokenizer_piece(t, 6, &piece, &size) && size == 2 && memcmp(piece, "\xc3\xa9", 2) == 0);
    rwkvflow_tokenizer_free(t);
    rwkvflow_tokenizer_free(NULL);
    CHECK(rwkvflow_tokenizer_open(NULL) == NULL && rwkvflow_tokenizer_open("/does/not/exist") == NULL);
    CHECK(rwkv_get_last_error(NULL) == (RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN));
    CHECK(rwkvflow_tokenizer_from_memory(NULL, 1) == NULL && rwkvflow_tokenizer_from_memory("", 0) == NULL);
    CHECK(rwkvflow_tokenizer_from_memory(kWorld, UINT64_MAX) == NULL);
    for (size_t cut = 1; cut < sizeof kWorld - 1; ++cut) {
        copy = malloc(cut); /* what is behind it belongs to somebody else */
        memcpy(copy, kWorld, cut);
        t = rwkvflow_tokenizer_from_memory(copy, cut);
        CHECK(t != NULL || rwkv_get_last_error(NULL) == (RWKV_ERROR_FILE | RWKV_ERROR_DATA));
        rwkvflow_tokenizer_free(t);
        free(copy);
    }
    return 0;
}

static int check(const char *path, const char *scratch) {
    CHECK(rwkv_get_print_errors(NULL));
    rwkv_set_print_errors(NULL, false);
    CHECK(!rwkv_get_print_errors(NULL));

    CHECK(rwkv_init_from_file(path, 0, 0) == NULL);
    CHECK(rwkv_get_last_error(NULL) == RWKV_ERROR_ARGS);
    CHECK(rwkv_get_last_error(NULL) == RWKV_ERROR_NONE);
    CHECK(rwkv_init_from_file(NULL, 1, 0) == NULL);
    CHECK(rwkv_init_from_file("/does/not/exist", 1, 0) == NULL);
    CHECK(rwkv_get_last_error(NULL) == (RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN));
    CHECK(strstr(rwkvflow_get_last_message(NULL), "/does/not/exist") != NULL);
    CHECK(rwkv_init_from_file("/", 1, 0) == NULL);
    CHECK(rwkv_get_last_error(NULL) == (RWKV_ERROR_FILE | RWKV_ERROR_FILE_STAT));
    CHECK(rwkv_clone_context(NULL, 1) == NULL);
    CHECK(!rwkv_eval(NULL, 0, NULL, NULL, NULL));
    CHECK(!rwkv_eval_sequence(NULL, NULL, 1, NULL, NULL, NULL));
    CHECK(!rwkv_eval_sequence_in_chunks(NULL, NULL, 1, 1, NULL, NULL, NULL));
    CHECK(!rwkvflow_set_option(NULL, "group_norm_eps", 1e-5));
    rwkv_free(NULL);
    rwkvflow_file_close(NULL);

    struct rwkv_context *ctx = rwkv_init_from_file(path, 3, 99);
    CHECK(ctx != NULL);
    CHECK(!rwkv_get_print_errors(ctx));
    const size_t n_state = rwkv_get_state_len(ctx), n_logits = rwkv_get_logits_len(ctx),
                 n_vocab = rwkv_get_n_vocab(ctx);
    CHECK(n_logits == n_vocab && n_state > 0 && rwkv_get_n_embed(ctx) > 0 && rwkv_get_n_layer(ctx) > 0);
    CHECK(rwkv_get_state_buffer_element_count(ctx) == n_state);
    CHECK(rwkv_get_logits_buffer_element_count(ctx) == n_logits);
    CHECK(strlen(rwkvflow_get_version(ctx)) > 0 && strlen(rwkvflow_get_kernels()) > 0);
    CHECK(strstr(rwkv_get_system_info_string(), rwkvflow_get_kernels()) != NULL);

    /* Exactly as large as they must be: one float too many is the sanitizer's to find. */
    float *state = malloc(n_state * sizeof(float)), *other = malloc(n_state * sizeof(float));
    float *logits = malloc(n_logits * sizeof(float)), *same = malloc(n_logits * sizeof(float));
    uint32_t tokens[134];
    for (size_t i = 0; i < 134; ++i) tokens[i] = (uint32_t)((i * 37 + 5) % n_vocab);

    CHECK(!rwkv_eval(ctx, (uint32_t)n_vocab, NULL, state, logits));
    CHECK(rwkv_get_last_error(ctx) == RWKV_ERROR_ARGS);
    CHECK(rwkv_get_last_error(ctx) == RWKV_ERROR_NONE);
    CHECK(!rwkv_eval_sequence(ctx, tokens, 0, NULL, state, logits));
    CHECK(!rwkv_eval_sequence_in_chunks(ctx, tokens, 5, 0, NULL, state, logits));
    CHECK(rwkv_eval_sequence(ctx, NULL, 134, NULL, NULL, NULL));
    CHECK(rwkv_eval(ctx, tokens[0], NULL, NULL, NULL));

    for (size_t i = 0; i < 134; ++i)
        CHECK(rwkv_eval(ctx, tokens[i], i == 0 ? NULL : state, state, i == 133 ? logits : NULL));
    for (size_t i = 0; i < n_logits; ++i) CHECK(isfinite(logits[i]));
    CHECK(rwkv_eval_sequence(ctx, tokens, 134, NULL, other, same));
    CHECK(memcmp(logits, same, n_logits * sizeof(float)) == 0 && memcmp(state, other, n_state * sizeof(float)) == 0);
    memset(same, 0, n_logits * sizeof(float));
    CHECK(rwkv_eval_sequence_in_chunks(ctx, tokens, 134, 16, NULL, NULL, same));
    CHECK(memcmp(logits, same, n_logits * sizeof(float)) == 0);
    rwkv_init_state(ctx, other);
    CHECK(rwkv_eval_sequence(ctx, tokens, 33, other, other, NULL));
    CHECK(rwkv_eval_sequence(ctx, tokens + 33, 101, other, other, same));
    CHECK(memcmp(logits, same, n_logits * sizeof(float)) == 0 && memcmp(state, other, n_state * sizeof(float)) == 0);

    if (check_batch(ctx, tokens, 134) != 0 || check_states(ctx, scratch) != 0 || check_choices(ctx) != 0 ||
        check_tokenizers() != 0)
        return 1;

    /* Clones side by side, the first context freed under them. */
    struct side sides[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; ++i) {
        sides[i] = (struct side){rwkv_clone_context(ctx, (uint32_t)(1 + i)), tokens, 134,
                                 malloc(n_logits * sizeof(float)), false};
        CHECK(sides[i].ctx != NULL);
    }
    rwkv_free(ctx);
    for (int i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], NULL, evaluate_aside, &sides[i]) == 0);
    for (int i = 0; i < 3; ++i) {
        pthread_join(threads[i], NULL);
        CHECK(sides[i].fine && memcmp(logits, sides[i].logits, n_logits * sizeof(float)) == 0);
    }
    CHECK(!rwkvflow_set_option(sides[0].ctx, "group_norm_eps", -1));
    CHECK(!rwkvflow_set_option(sides[0].ctx, "group_norm_eps", NAN));
    CHECK(!rwkvflow_set_option(sides[0].ctx, "nothing", 1));
    CHECK(rwkv_get_last_error(sides[0].ctx) == RWKV_ERROR_ARGS);
    CHECK(rwkvflow_set_option(sides[0].ctx, "group_norm_eps", 1e-5));
    double value;
    CHECK(rwkvflow_get_option(sides[0].ctx, "group_norm_eps", &value) && fabs(value - 1e-5) < 1e-9);
    CHECK(!rwkvflow_get_option(sides[0].ctx, "nothing", &value) &&
          !rwkvflow_get_option(NULL, "layer_norm_eps", &value));
    CHECK(!rwkvflow_get_option(sides[0].ctx, "layer_norm_eps", NULL));
    for (int i = 0; i < 3; ++i) {
        rwkv_free(sides[i].ctx);
        free(sides[i].logits);
    }

    const char *const formats[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"};
    CHECK(!rwkv_quantize_model_file(path, scratch, "Q9_9"));
    CHECK(!rwkv_quantize_model_file(path, "/does/not/exist", "Q8_0"));
    CHECK(rwkv_get_last_error(NULL) == (RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN));
    for (int i = 0; i < 5; ++i) {
        CHECK(rwkv_quantize_model_file(path, scratch, formats[i]));
        ctx = rwkv_init_from_file(scratch, 2, 0);
        CHECK(ctx != NULL && rwkv_eval_sequence(ctx, tokens, 40, NULL, NULL, same));
        for (size_t j = 0; j < n_logits; ++j) CHECK(isfinite(same[j]));
        rwkv_free(ctx);
        CHECK(!rwkv_quantize_model_file(scratch, scratch, "Q8_0"));
    }

    struct rwkvflow_file *file = rwkvflow_file_open(path);
    int32_t header[6];
    struct rwkvflow_tensor tensor;
    CHECK(file != NULL);
    rwkvflow_file_header(file, header);
    CHECK((size_t)header[2] == n_vocab && rwkvflow_file_tensor(file, 0, &tensor) &&
          strcmp(tensor.name, "emb.weight") == 0);
    CHECK(!rwkvflow_file_tensor(file, rwkvflow_file_tensor_count(file), &tensor));
    rwkvflow_file_close(file);

    free(state);
    free(other);
    free(logits);
    free(same);
    puts("ok");
    return 0;
}

static void open_one(const char *path) {
    struct rwkv_context *ctx = rwkv_init_from_file(path, 2, 0);
    if (ctx == NULL) {
        printf("%d %s\n", (int)rwkv_get_last_error(NULL), rwkvflow_get_last_message(NULL));
        return;
    }
    /* A state that would not fit is refused by malloc; the model itself may still be fine. */
    const size_t n_state = rwkv_get_state_len(ctx), n_logits = rwkv_get_logits_len(ctx);
    float *logits = n_state < 1u << 24 ? malloc(n_logits * sizeof(float)) : NULL;
    const uint32_t tokens[3] = {0, (uint32_t)(n_logits - 1), 0};
    if (logits != NULL) rwkv_eval_sequence(ctx, tokens, 3, NULL, NULL, logits);
    free(logits);
    rwkv_free(ctx);
    puts("opened");
}

static bool encode_itself(const char *path, const struct rwkvflow_tokenizer *t) {
    char text[4096];
    FILE *file = fopen(path, "rb");
    if (file == NULL) return false;
    const size_t size = fread(text, 1, sizeof text, file);
    fclose(file);
    size_t count, length = 0;
    if (!rwkvflow_tokenizer_encode(t, text, size, NULL, 0, &count)) return true; /* a vocabulary may lack bytes */
    uint32_t *tokens = malloc((count + 1) * sizeof *tokens);
    char *again = NULL;
    bool fine = rwkvflow_tokenizer_encode(t, text, size, tokens, count, &count) &&
                rwkvflow_tokenizer_decode(t, tokens, count, NULL, 0, &length);
    if (fine) {
        again = malloc(length + 1);
        fine = rwkvflow_tokenizer_decode(t, tokens, count, again, length, &length);
    }
    for (size_t i = 0; fine && i < count; ++i) fine = tokens[i] < rwkvflow_tokenizer_size(t);
    free(tokens);
    free(again);
    return fine;
}

static void open_tokenizer(const char *path) {
    struct rwkvflow_tokenizer *t = rwkvflow_tokenizer_open(path);
    if (t == NULL) printf("%d %s\n", (int)rwkv_get_last_error(NULL), rwkvflow_get_last_message(NULL));
    else puts(encode_itself(path, t) ? "opened" : "1 it cannot encode itself");
    rwkvflow_tokenizer_free(t);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "check") == 0) return check(argv[2], argv[3]);
    if (argc != 2 || (strcmp(argv[1], "open") != 0 && strcmp(argv[1], "tokenizer") != 0)) return 2;
    void (*const one)(const char *) = argv[1][0] == 'o' ? open_one : open_tokenizer;
    rwkv_set_print_errors(NULL, false);
    char path[4096];
    while (fgets(path, sizeof path, stdin) != NULL) {
        path[strcspn(path, "\n")] = 0;
        one(path);
        fflush(stdout);
    }
    return 0;
}

// libFuzzer over vocabularies, World and tokenizer.json: whatever the bytes are, they give a tokenizer or an error.
// What opens encodes the vocabulary's own bytes, which hold its tokens, and other texts; decoding gives back what was
// encoded, or its normal form.
//
// Most changes take whole tokens of the format (numbers, quotes, names, lines) from a list, or move pieces about.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "rwkvflow.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

namespace {

const char *const kWords[] = {"\"",
                              "'",
                              "b'",
                              "{",
                              "}",
                              "[",
                              "]",
                              ":",
                              ",",
                              " ",
                              "\n",
                              "\r\n",
                              "\\",
                              "\\n",
                              "\\\"",
                              "\\x00",
                              "\\xff",
                              "\\u0120",
                              "\\ud83d\\ude00",
                              "\\ud800",
                              "null",
                              "true",
                              "false",
                              "0",
                              "1",
                              "-1",
                              "255",
                              "256",
                              "65535",
                              "1048575",
                              "1048576",
                              "4294967295",
                              "1e9",
                              "0.5",
                              "\"model\"",
                              "\"vocab\"",
                              "\"merges\"",
                              "\"type\"",
                              "\"BPE\"",
                              "\"NFC\"",
                              "\"ByteLevel\"",
                              "\"normalizer\"",
                              "\"pre_tokenizer\"",
                              "\"decoder\"",
                              "\"added_tokens\"",
                              "\"id\"",
                              "\"content\"",
                              "\"special\"",
                              "\"normalized\"",
                              "\"lstrip\"",
                              "\"dropout\"",
                              "\"add_prefix_space\"",
                              "\"use_regex\"",
                              "\"a b\"",
                              "[\"a\", \"b\"]",
                              "{\"id\": 3, \"content\": \"  \", \"special\": false}",
                              "\xc4\xa0",
                              "\xcc\x81",
                              "\xe1\x84\x80\xe1\x85\xa1",
                              "\xff",
                              "\xc3",
                              "'a' 1",
                              "258 'ab' 2\n"};

struct Random {
    uint64_t state;
    size_t below(size_t limit) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<size_t>((state >> 33) % limit);
    }
};

size_t replace(uint8_t *data, size_t size, size_t max_size, size_t from, size_t to, const void *with, size_t length) {
    if (size - (to - from) + length > max_size) return size;
    memmove(data + from + length, data + to, size - to);
    memcpy(data + from, with, length);
    return size - (to - from) + length;
}

// The pieces between these characters are moved about as a whole.
bool ends_piece(uint8_t c) { return c == '\n' || c == ',' || c == '"' || c == ' ' || c == '{' || c == '}'; }

void piece(const uint8_t *data, size_t size, Random *random, size_t *from, size_t *to) {
    *from = random->below(size);
    while (*from > 0 && !ends_piece(data[*from - 1])) --*from;
    *to = *from;
    while (*to < size && !ends_piece(data[*to])) ++*to;
}

void encode(const rwkvflow_tokenizer *t, const char *text, size_t size, bool exact) {
    size_t count = 0, length = 0;
    if (!rwkvflow_tokenizer_encode(t, text, size, nullptr, 0, &count)) {
        if (rwkvflow_get_last_message(nullptr)[0] == 0) abort();
        return;
    }
    // Exactly as large as they must be: one too many is the sanitizer's to find.
    uint32_t *tokens = static_cast<uint32_t *>(malloc(count * sizeof(uint32_t)));
    size_t again = 0;
    if (!rwkvflow_tokenizer_encode(t, text, size, tokens, count, &again) || again != count) abort();
    for (size_t i = 0; i < count; ++i)
        if (tokens[i] >= rwkvflow_tokenizer_size(t)) abort();
    if (!rwkvflow_tokenizer_decode(t, tokens, count, nullptr, 0, &length)) abort();
    char *decoded = static_cast<char *>(malloc(length));
    if (!rwkvflow_tokenizer_decode(t, tokens, count, decoded, length, &again) || again != length) abort();
    if (exact && (length != size || memcmp(decoded, text, size) != 0)) abort();
    free(tokens);
    free(decoded);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    rwkv_set_print_errors(nullptr, false);
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    Random random{seed};
    for (size_t left = 1 + random.below(4); left > 0; --left) {
        size_t from, to, other, end;
        uint8_t copy[256];
        if (size == 0 || random.below(4) == 0) {
            size = LLVMFuzzerMutate(data, size, max_size);
            continue;
        }
        piece(data, size, &random, &from, &to);
        const char *word = kWords[random.below(sizeof kWords / sizeof kWords[0])];
        switch (random.below(4)) {
            case 0: size = replace(data, size, max_size, from, to, word, strlen(word)); break;
            case 1: size = replace(data, size, max_size, from, from, word, strlen(word)); break;
            case 2: size = replace(data, size, max_size, from, to, "", 0); break;
            default:
                piece(data, size, &random, &other, &end);
                if (end - other > sizeof copy) break;
                memcpy(copy, data + other, end - other);
                size = replace(data, size, max_size, from, to, copy, end - other);
        }
    }
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rwkvflow_tokenizer *t = rwkvflow_tokenizer_from_memory(data, size);
    if (t == nullptr) {
        // A refusal says why.
        if (rwkv_get_last_error(nullptr) == RWKV_ERROR_NONE || rwkvflow_get_last_message(nullptr)[0] == 0) abort();
        return 0;
    }
    encode(t, reinterpret_cast<const char *>(data), size, strcmp(rwkvflow_tokenizer_kind(t), "world") == 0);
    // Marks in the wrong order, letters that fall apart when normalized, bytes that are no characters, a lone first
    // half.
    static const char kText[] =
        "it's  e\xcc\x81\xcc\xa3 \xe0\xa5\x98\xea\xb0\x80\xe1\x84\x80\xe1\x85\xa1\n\n\t a\xff\xc3 <|end|>  12";
    for (size_t cut = 0; cut < sizeof kText; cut += 7) encode(t, kText, cut, false);
    for (uint32_t token = 0; token < 300; ++token) {
        const char *piece;
        size_t length;
        rwkvflow_tokenizer_piece(t, token, &piece, &length);
        for (size_t i = 0; i < length; ++i)
            if (*const_cast<const volatile char *>(piece + i) == 1) break;  // is it there to be read?
    }
    rwkvflow_tokenizer_free(t);
    return 0;
}

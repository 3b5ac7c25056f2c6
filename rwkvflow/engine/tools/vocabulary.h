// Tokens to bytes and text to tokens: one token a byte, or RWKV's World vocabulary.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "text.h"

class Vocabulary {
public:
    Vocabulary() = default;
    Vocabulary(const Vocabulary &) = delete;
    Vocabulary &operator=(const Vocabulary &) = delete;
    ~Vocabulary();

    // One token a byte.
    void open_bytes() { bytes_ = true; }

    // A list of the World models: lines of an id, a Python literal, and its length in bytes. False with a message on stderr.
    bool open_world(const char *path, size_t n_vocab);

    // Appends the ids of a text to *ids (malloc, *count of them). False without memory, or for a byte that no token begins
    // with.
    bool encode(const char *text, size_t size, uint32_t **ids, size_t *count) const;

    // The bytes of a token.
    void piece(size_t token, const char **data, size_t *size) const;

private:
    struct Token {
        uint32_t start = 0, size = 0;
    };
    struct Node {
        int32_t child[16];  // by half bytes
        uint32_t token;
    };

    bool add(size_t id, size_t start, size_t n_vocab);
    bool parse(const char *text, size_t size, size_t n_vocab, size_t *line);
    int32_t new_node();

    bool bytes_ = false;
    Text data_;
    Token *tokens_ = nullptr;
    Node *nodes_ = nullptr;
    size_t n_tokens_ = 0, n_nodes_ = 0, room_ = 0;
};

// What a Bpe is built of, wherever it is read from: tokens first, then merges, then the tokens that are cut out of a
// text. Tokens are in GPT-2's spelling, a letter for each byte.
#pragma once

#include "tokenizer/tokenizer.h"

namespace rwkvflow {

// The letters that stand for bytes: printable ones for themselves, the others from U+0100 on, in order.
struct Letters {
    uint16_t of_byte[256];
    int16_t byte_of[324];  // -1 for none
};

class BpeBuilder {
public:
    // `name` is what messages call the file, `kind` what it should be: "a tokenizer.json of byte-level BPE".
    BpeBuilder(Bpe *bpe, const char *name, const char *kind, Error *error);
    BpeBuilder(const BpeBuilder &) = delete;
    BpeBuilder &operator=(const BpeBuilder &) = delete;

    bool refuse(const char *why);  // false, with DATA
    bool no_memory();
    void normalize() { bpe_->nfc_ = true; }
    void prefix_space() { bpe_->prefix_space_ = true; }

    // A token of the vocabulary. Null, or why not.
    const char *token(uint64_t id, const char *text, size_t size);
    bool end_tokens();

    bool reserve_merges(uint64_t count);
    // The next merge in order; `cut` is where its right part begins. Null, or why not.
    const char *merge(const char *both, size_t size, size_t cut);

    // A token that is found in a text before it is cut into words: special ones are no text themselves, others in the
    // normalized text where `normalized`. Null, or why not.
    const char *added(uint64_t id, const char *text, size_t size, bool special, bool normalized);
    bool end_added();

private:
    struct Start {
        size_t at, size;
        uint32_t id;
    };
    struct Growing {
        Start *data = nullptr;
        size_t count = 0, room = 0;
        Growing() = default;
        Growing(const Growing &) = delete;
        Growing &operator=(const Growing &) = delete;
        ~Growing() { free(data); }
        bool add(const Start &start);
    };

    bool build(Lexicon *out, const Growing &from, const Text &text);
    uint32_t id_of(const char *text, size_t size) const;
    bool add_piece(uint32_t id, bool known, bool special, const char *text, size_t size);

    Bpe *bpe_;
    const char *name_, *kind_;
    Error *error_;
    Letters letters_;
    Text strings_;  // the vocabulary as it stands in the file
    Growing tokens_, raw_, normal_;
    Lexicon lexicon_;
    uint32_t rank_ = 0;
};

}  // namespace rwkvflow

// Text to tokens and back: see rwkvflow.h for what the kinds are.
#pragma once

#include "base/error.h"
#include "base/gguf.h"
#include "tokenizer/lexicon.h"
#include "tokenizer/unicode.h"

namespace rwkvflow {

inline constexpr uint64_t kLargestVocabulary = uint64_t{64} << 20;  // bytes of a file
inline constexpr uint32_t kMostTokenIds = 1 << 20;
inline constexpr size_t kLongestToken = 4096;  // bytes

// Where tokens go. What is beyond `room` is only counted.
struct Ids {
    uint32_t *ids;
    size_t room, count;

    void add(uint32_t id) {
        if (count < room) ids[count] = id;
        ++count;
    }
};

// The bytes of tokens by their ids.
class Pieces {
public:
    Pieces() = default;
    Pieces(const Pieces &) = delete;
    Pieces &operator=(const Pieces &) = delete;
    ~Pieces() { free(spans_); }

    // A token whose bytes (none for one that is no text) were added to data() from `start` on. False for want of
    // memory, or for an id that is too large or there already.
    bool add(uint64_t id, size_t start);
    bool empty(uint64_t id);  // makes a known one have no bytes
    Text *data() { return &data_; }
    bool get(uint64_t id, const char **data, size_t *size) const;
    uint32_t size() const { return size_; }  // 1 + the largest id

private:
    struct Span {
        uint32_t start, size;
        bool known;
    };
    Text data_;
    Span *spans_ = nullptr;
    uint32_t size_ = 0, room_ = 0;
};

// RWKV's World vocabulary: always the longest token that fits.
class World {
public:
    // Lines of an id, a Python literal (text or bytes) and its length in bytes. `name` is what messages call it.
    bool open(const char *name, const char *text, size_t size, Error *error);
    // The same from a GGUF with llama.cpp's `rwkv` tokenizer: gguf_words.cc.
    bool open_gguf(const Gguf &gguf, Error *error);
    bool encode(const char *text, size_t size, Ids *out, Error *error) const;
    const Pieces &pieces() const { return pieces_; }

private:
    // Tokens whose bytes are in pieces_, on their way into the lexicon.
    class Words {
    public:
        Words() = default;
        Words(const Words &) = delete;
        Words &operator=(const Words &) = delete;
        ~Words() {
            free(entries_);
            free(starts_);
        }
        bool reserve(size_t most);
        void add(size_t start, size_t size, uint64_t id);
        size_t count() const { return count_; }

    private:
        friend class World;
        Lexicon::Entry *entries_ = nullptr;
        size_t *starts_ = nullptr;
        size_t count_ = 0;
    };
    bool build(Words *words, const char *name, Error *error);  // at last: what pieces_ holds must not move any more

    Pieces pieces_;
    Lexicon lexicon_;
};

// Byte-level BPE, the kind that GPT-NeoX (20B) has.
class Bpe {
public:
    Bpe() = default;
    Bpe(const Bpe &) = delete;
    Bpe &operator=(const Bpe &) = delete;
    ~Bpe() { free(pairs_); }

    // From a tokenizer.json: bpe_file.cc. `name` is what messages call it.
    bool open(const char *name, const char *text, size_t size, Error *error);
    // From a GGUF with llama.cpp's `gpt2` tokenizer: bpe_gguf.cc.
    bool open_gguf(const Gguf &gguf, Error *error);
    bool encode(const char *text, size_t size, Ids *out, Error *error) const;
    const Pieces &pieces() const { return pieces_; }

private:
    static constexpr uint32_t kNone = ~0u;  // no token
    struct Pair {
        uint32_t left, right, rank, merged;
    };
    struct Work;
    friend class BpeBuilder;

    bool reserve_pairs(uint64_t count);  // once, for so many add_pair
    void add_pair(const Pair &pair);     // of two with the same left and right the last one counts
    bool find(uint32_t left, uint32_t right, Pair *out) const;
    bool normalized(const char *text, size_t size, Work *work, Ids *out) const;
    bool words(const char *text, size_t size, Work *work, Ids *out) const;
    bool word(const char *text, size_t size, Work *work, Ids *out) const;
    void consider(int32_t at, Work *work) const;

    Pieces pieces_;
    Pair *pairs_ = nullptr;
    uint64_t n_pairs_ = 0;  // a power of two
    uint32_t of_byte_[256];
    Text added_text_;
    Lexicon raw_, added_;  // added tokens: looked for before the text is normalized, and after
    bool nfc_ = false, prefix_space_ = false;
};

}  // namespace rwkvflow

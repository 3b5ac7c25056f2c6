// The vocabulary in a GGUF of llama.cpp's `gpt2` tokenizer read into a Bpe: tokens with their types, merges, and the
// name of a way to cut a text into words, of which librwkv knows GPT-2's.
//
// A file does not say whether a text is normalized first. By its converter's names it is in `olmo`, which the tokenizer
// of GPT-NeoX (20B: RWKV's Pile models) is called, too, and is not in `gpt-2`.
#include "tokenizer/bpe_builder.h"

namespace rwkvflow {

namespace {

constexpr const char *kTokens = "tokenizer.ggml.tokens", *kTypes = "tokenizer.ggml.token_type",
                     *kMerges = "tokenizer.ggml.merges", *kPre = "tokenizer.ggml.pre",
                     *kSpaced = "tokenizer.ggml.add_space_prefix";
enum Kind : uint32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };  // llama.cpp's types of tokens

struct GgufReader {
    const Gguf &gguf;
    BpeBuilder *out;
    Error *error;
    GgufValue tokens, kinds, merges;

    bool unsupported(const char *key, const GgufString &value) const {
        const bool shown = value.size > 0 && value.size < 40 && value.printable();
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED, "%s: its %s is \"%.*s\"; librwkv knows %s",
                    gguf.name(), key, shown ? static_cast<int>(value.size) : 1, shown ? value.data : "?",
                    key == kPre ? "gpt-2 and olmo" : "false");
    }

    bool read() {
        GgufString pre;
        uint64_t spaced;
        if (!gguf.text(kPre, &pre, error) || !gguf.number(kSpaced, 1, 0, &spaced, error)) return false;
        if (!pre.is("gpt-2") && !pre.is("olmo")) return unsupported(kPre, pre);
        if (spaced != 0) return unsupported(kSpaced, {"true", 4});
        if (pre.is("olmo")) out->normalize();
        if (!list(kTokens, kGgufText, &tokens) || !list(kTypes, kGgufInt32, &kinds) ||
            !list(kMerges, kGgufText, &merges))
            return false;
        if (tokens.count > kMostTokenIds) return out->refuse("more tokens than ids");
        if (kinds.count != tokens.count) return out->refuse("not as many types as tokens");
        return each_token([&](uint32_t kind, uint64_t id, const GgufString &text) {
                   return kind == kControl ? nullptr : out->token(id, text.data, text.size);
               }) &&
               out->end_tokens() && read_merges() &&
               each_token([&](uint32_t kind, uint64_t id, const GgufString &text) {
                   if (kind == kNormal) return static_cast<const char *>(nullptr);
                   return out->added(id, text.data, text.size, kind == kControl, kind == kUserDefined);
               }) &&
               out->end_added();
    }

    bool list(const char *key, uint32_t inner, GgufValue *to) const {
        if (!gguf.find(key, to, error))
            return error->flags == 0 &&
                   fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: it has no %s", gguf.name(), key);
        return (to->kind == kGgufArray && to->inner == inner) ||
               fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: its %s are no list of their type", gguf.name(), key);
    }

    // Gives those that are used to `take`, which says what is wrong or null.
    template <typename Take>
    bool each_token(Take take) const {
        GgufCursor token = {tokens.data, tokens.end}, kind = {kinds.data, kinds.end};
        for (uint64_t id = 0; id < tokens.count; ++id) {
            GgufString text;
            uint32_t type;
            if (!token.text(2 * kLongestToken, &text) || !kind.u32(&type)) return out->refuse("a token too long");
            if (type == kUnused) continue;
            if (type != kNormal && type != kControl && type != kUserDefined)
                return out->refuse("a token of a type that byte-level BPE has not");
            if (!is_utf8(text.data, text.size)) return out->refuse("a token that is no UTF-8");
            if (const char *why = take(type, id, text); why != nullptr) return out->refuse(why);
        }
        return true;
    }

    bool read_merges() const {
        if (!out->reserve_merges(merges.count)) return false;
        GgufCursor cursor = {merges.data, merges.end};
        Text both;
        for (uint64_t i = 0; i < merges.count; ++i) {
            GgufString pair;
            if (!cursor.text(4 * kLongestToken, &pair)) return out->refuse("a merge that is too long");
            const char *space = static_cast<const char *>(memchr(pair.data, ' ', pair.size));
            const size_t cut = space == nullptr ? 0 : static_cast<size_t>(space - pair.data);
            if (space == nullptr || memchr(space + 1, ' ', pair.size - cut - 1) != nullptr)
                return out->refuse("a merge that is no pair");
            both.clear();
            both.add(pair.data, pair.size);
            if (both.failed()) return out->no_memory();
            both.drop(cut, 1);
            if (const char *why = out->merge(both.data(), both.size(), cut); why != nullptr) return out->refuse(why);
        }
        return true;
    }
};

}  // namespace

bool Bpe::open_gguf(const Gguf &gguf, Error *error) {
    BpeBuilder builder(this, gguf.name(), "a vocabulary of byte-level BPE", error);
    GgufReader reader = {gguf, &builder, error, {}, {}, {}};
    return reader.read();
}

}  // namespace rwkvflow

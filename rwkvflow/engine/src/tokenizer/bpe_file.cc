// A tokenizer.json read into a Bpe. What it asks for beyond byte-level BPE as GPT-NeoX has it is refused, not ignored.
#include "tokenizer/bpe_builder.h"
#include "tokenizer/json.h"

namespace rwkvflow {

namespace {

bool is(const Text &text, const char *word) {
    return text.size() == strlen(word) && memcmp(text.data(), word, text.size()) == 0;
}

struct JsonReader {
    BpeBuilder *out;
    const char *name;
    Error *error;
    // What the parts of the file are; none where they are missing.
    Json model, added, normalizer, pre_tokenizer, decoder, vocab, merges;

    bool refuse(const char *why) { return out->refuse(why); }
    bool unsupported(const char *what) {
        const uint32_t flags = RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED;
        return fail(error, flags, "%s: %s of this tokenizer.json is not supported", name, what);
    }

    // Where each named member of an object is; all of the object is checked.
    struct Member {
        const char *name;
        Json *at;
        bool found;
    };
    template <size_t N>
    bool members(Json *in, Member (&wanted)[N]) {
        const char *twice = nullptr;
        const bool fine = in->object([&](const Text &key, Json *value) {
            for (Member &member : wanted) {
                if (!is(key, member.name)) continue;
                if (member.found) twice = member.name;
                member.found = true;
                *member.at = *value;
            }
            return value->skip();
        });
        return fine && twice == nullptr;
    }
    static bool missing(Json at) { return at.next() == 0 || at.null(); }
    static bool plain_string(Json at, const char *word) {
        Text text;
        return at.string(&text) && !text.failed() && is(text, word);
    }
    // False, null, or not there.
    static bool off(Json at) {
        bool on = false;
        return missing(at) || (at.boolean(&on) && !on);
    }
    static bool empty_string(Json at) { return missing(at) || plain_string(at, ""); }

    bool read(const char *text, size_t size) {
        if (!is_utf8(text, size)) return refuse("not UTF-8");
        Json all(text, size), truncation, padding;
        Member parts[] = {{"model", &model, false},           {"added_tokens", &added, false},
                          {"normalizer", &normalizer, false}, {"pre_tokenizer", &pre_tokenizer, false},
                          {"decoder", &decoder, false},       {"truncation", &truncation, false},
                          {"padding", &padding, false}};
        if (!members(&all, parts) || !all.at_end()) return refuse("not JSON, or a part of it twice");
        if (!missing(truncation)) return unsupported("truncation");
        if (!missing(padding)) return unsupported("padding");
        return read_steps() && read_model() && read_vocabulary() && read_merges() && read_added();
    }

    bool read_steps() {
        Json type, inner, regex, prefix;
        if (!missing(normalizer)) {
            Member parts[] = {{"type", &type, false}, {"normalizers", &inner, false}};
            if (!members(&normalizer, parts)) return refuse("its normalizer");
            if (!plain_string(type, "NFC")) return unsupported("the normalizer (NFC is)");
            out->normalize();
        }
        type = {};
        Member parts[] = {{"type", &type, false}, {"use_regex", &regex, false}, {"add_prefix_space", &prefix, false}};
        if (missing(pre_tokenizer)) return unsupported("the lack of a pre_tokenizer");
        if (!members(&pre_tokenizer, parts)) return refuse("its pre_tokenizer");
        if (!plain_string(type, "ByteLevel")) return unsupported("the pre_tokenizer (ByteLevel is)");
        bool on = true;
        if (regex.next() != 0 && !regex.boolean(&on)) return refuse("its use_regex");
        if (!on) return unsupported("use_regex false");
        bool spaced = false;
        if (prefix.next() != 0 && !prefix.boolean(&spaced)) return refuse("its add_prefix_space");
        if (spaced) out->prefix_space();
        type = {};
        Member one[] = {{"type", &type, false}};
        if (missing(decoder) || !members(&decoder, one) || !plain_string(type, "ByteLevel"))
            return unsupported("the decoder (ByteLevel is)");
        return true;
    }

    bool read_model() {
        Json type, dropout, prefix, suffix, fallback, ignore;
        Member parts[] = {{"type", &type, false},
                          {"vocab", &vocab, false},
                          {"merges", &merges, false},
                          {"dropout", &dropout, false},
                          {"continuing_subword_prefix", &prefix, false},
                          {"end_of_word_suffix", &suffix, false},
                          {"byte_fallback", &fallback, false},
                          {"ignore_merges", &ignore, false}};
        if (model.next() != '{' || !members(&model, parts)) return refuse("its model");
        if (type.next() != 0 && !plain_string(type, "BPE")) return unsupported("the model (BPE is)");
        if (!missing(dropout)) return unsupported("dropout");
        if (!empty_string(prefix) || !empty_string(suffix)) return unsupported("a prefix or suffix of words");
        if (!off(fallback)) return unsupported("byte_fallback");
        if (!off(ignore)) return unsupported("ignore_merges");
        return true;
    }

    bool read_vocabulary() {
        const char *problem = "its vocab";
        const bool fine = vocab.object([&](const Text &key, Json *value) {
            uint64_t id;
            problem = "its vocab";
            if (!value->whole(kMostTokenIds - 1, &id)) return false;
            const char *why = out->token(id, key.data(), key.size());
            if (why != nullptr) problem = why;
            return why == nullptr;
        });
        return fine ? out->end_tokens() : refuse(problem);
    }

    // "left right", or [left, right]. Both, one after the other, are in *both.
    static bool read_merge(Json *in, Text *both, size_t *cut) {
        both->clear();
        if (in->next() == '[') {
            int count = 0;
            return in->array([&](Json *part) {
                if (count++ == 1) *cut = both->size();
                return part->string(both);
            }) && count == 2 &&
                   !both->failed();
        }
        if (!in->string(both) || both->failed()) return false;
        const char *space = static_cast<const char *>(memchr(both->data(), ' ', both->size()));
        if (space == nullptr) return false;
        *cut = static_cast<size_t>(space - both->data());
        if (memchr(space + 1, ' ', both->size() - *cut - 1) != nullptr) return false;
        both->drop(*cut, 1);
        return true;
    }

    bool read_merges() {
        uint64_t count = 0;
        Json counted = merges;
        if (!counted.array([&](Json *value) {
                ++count;
                return value->skip();
            }))
            return refuse("its merges");
        if (!out->reserve_merges(count)) return false;
        Text both;
        const char *problem = "a merge that is no pair";
        const bool fine = merges.array([&](Json *value) {
            size_t cut = 0;
            problem = "a merge that is no pair";
            if (!read_merge(value, &both, &cut)) return false;
            const char *why = out->merge(both.data(), both.size(), cut);
            if (why != nullptr) problem = why;
            return why == nullptr;
        });
        return fine || refuse(problem);
    }

    bool read_added() {
        if (missing(added)) return true;
        const char *problem = "its added_tokens";
        bool supported = true;
        const bool fine = added.array([&](Json *value) {
            Json id_at, content, special_at, normalized_at, word, left, right;
            Member parts[] = {{"id", &id_at, false},           {"content", &content, false},
                              {"special", &special_at, false}, {"normalized", &normalized_at, false},
                              {"single_word", &word, false},   {"lstrip", &left, false},
                              {"rstrip", &right, false}};
            problem = "its added_tokens";
            uint64_t id;
            bool special = false, normalized = true;
            Text text;
            if (!members(value, parts) || !id_at.whole(kMostTokenIds - 1, &id)) return false;
            if (!content.string(&text) || text.failed()) return false;
            if (special_at.next() != 0 && !special_at.boolean(&special)) return false;
            normalized = !special;
            if (normalized_at.next() != 0 && !normalized_at.boolean(&normalized)) return false;
            supported = off(word) && off(left) && off(right);
            if (!supported) return false;
            const char *why = out->added(id, text.data(), text.size(), special, normalized);
            if (why != nullptr) problem = why;
            return why == nullptr;
        });
        if (!supported) return unsupported("an added token with single_word, lstrip or rstrip");
        return fine ? out->end_added() : refuse(problem);
    }
};

}  // namespace

bool Bpe::open(const char *name, const char *text, size_t size, Error *error) {
    BpeBuilder builder(this, name, "a tokenizer.json of byte-level BPE", error);
    JsonReader reader = {};
    reader.out = &builder;
    reader.name = name;
    reader.error = error;
    return reader.read(text, size);
}

}  // namespace rwkvflow

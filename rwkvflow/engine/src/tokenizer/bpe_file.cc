// A tokenizer.json read into a Bpe. What it asks for beyond byte-level BPE as GPT-NeoX has it is refused, not ignored.
#include "tokenizer/json.h"
#include "tokenizer/tokenizer.h"

namespace rwkvflow {

namespace {

// The letters that stand for bytes in such a file: printable ones for themselves, the others from U+0100 on, in order.
struct Letters {
    uint16_t of_byte[256];
    int16_t byte_of[324];  // -1 for none
};

Letters letters() {
    Letters out;
    uint16_t next = 256;
    for (int16_t &byte : out.byte_of) byte = -1;
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        const uint16_t letter = printable ? static_cast<uint16_t>(byte) : next++;
        out.of_byte[byte] = letter;
        out.byte_of[letter] = static_cast<int16_t>(byte);
    }
    return out;
}

// The bytes of a token; one with other letters is text as it stands.
void add_bytes(const Letters &letters, const char *text, size_t size, Text *out) {
    const size_t before = out->size();
    uint32_t length;
    for (const char *at = text, *end = text + size; at != end; at += length) {
        const uint32_t code = code_point_at(at, end, &length);
        if (code >= 324 || letters.byte_of[code] < 0) {
            out->cut(before);
            out->add(text, size);
            return;
        }
        out->add(static_cast<char>(letters.byte_of[code]));
    }
}

bool is(const Text &text, const char *word) {
    return text.size() == strlen(word) && memcmp(text.data(), word, text.size()) == 0;
}

}  // namespace

struct BpeReader {
    Bpe *bpe;
    const char *name;
    Error *error;
    Letters letters;
    // What the parts of the file are; none where they are missing.
    Json model, added, normalizer, pre_tokenizer, decoder, vocab, merges;
    Text strings;  // the vocabulary as it stands in the file
    Lexicon lexicon;

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
        bool add(const Start &start) {
            if (count == room) {
                Start *wider = static_cast<Start *>(realloc(data, (2 * room + 64) * sizeof(Start)));
                if (wider == nullptr) return false;
                data = wider;
                room = 2 * room + 64;
            }
            data[count++] = start;
            return true;
        }
    };

    bool refuse(const char *why) {
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: not a tokenizer.json of byte-level BPE: %s", name,
                    why);
    }
    bool unsupported(const char *what) {
        const uint32_t flags = RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED;
        return fail(error, flags, "%s: %s of this tokenizer.json is not supported", name, what);
    }
    bool no_memory() { return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %s", name); }

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
        letters = rwkvflow::letters();
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
            bpe->nfc_ = true;
        }
        type = {};
        Member parts[] = {{"type", &type, false}, {"use_regex", &regex, false}, {"add_prefix_space", &prefix, false}};
        if (missing(pre_tokenizer)) return unsupported("the lack of a pre_tokenizer");
        if (!members(&pre_tokenizer, parts)) return refuse("its pre_tokenizer");
        if (!plain_string(type, "ByteLevel")) return unsupported("the pre_tokenizer (ByteLevel is)");
        bool on = true;
        if (regex.next() != 0 && !regex.boolean(&on)) return refuse("its use_regex");
        if (!on) return unsupported("use_regex false");
        if (prefix.next() != 0 && !prefix.boolean(&bpe->prefix_space_)) return refuse("its add_prefix_space");
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
        Growing tokens;
        const char *problem = "its vocab";
        Text *data = bpe->pieces_.data();
        const bool fine = vocab.object([&](const Text &key, Json *value) {
            uint64_t id;
            if (!value->whole(kMostTokenIds - 1, &id)) return false;
            problem = "a token that is empty or too long";
            if (key.size() == 0 || key.size() > kLongestToken) return false;
            problem = "two tokens with one id, or no memory";
            const size_t start = data->size();
            add_bytes(letters, key.data(), key.size(), data);
            if (!bpe->pieces_.add(id, start)) return false;
            if (!tokens.add({strings.size(), key.size(), static_cast<uint32_t>(id)})) return false;
            strings.add(key.data(), key.size());
            problem = "its vocab";
            return !strings.failed();
        });
        if (!fine) return refuse(problem);
        if (!build(&lexicon, tokens, strings)) return false;
        for (uint32_t byte = 0; byte < 256; ++byte) {
            Text letter;
            add_code_point(letters.of_byte[byte], &letter);
            bpe->of_byte_[byte] = id_of(letter.data(), letter.size());
        }
        return true;
    }

    bool build(Lexicon *out, const Growing &from, const Text &text) {
        if (from.count == 0) return true;
        Lexicon::Entry *entries = static_cast<Lexicon::Entry *>(malloc(from.count * sizeof(Lexicon::Entry)));
        if (entries == nullptr) return no_memory();
        for (size_t i = 0; i < from.count; ++i)
            entries[i] = {text.data() + from.data[i].at, static_cast<uint32_t>(from.data[i].size), from.data[i].id, 0};
        uint32_t twice;
        if (out->build(entries, from.count, &twice)) return true;
        return twice == Bpe::kNone ? no_memory() : refuse("a token that is there twice");
    }

    uint32_t id_of(const char *text, size_t size) const {
        uint32_t id;
        return size > 0 && lexicon.longest(text, size, &id) == size ? id : Bpe::kNone;
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
        if (count > 4 * uint64_t{kMostTokenIds}) return refuse("more merges than there can be tokens");
        if (!bpe->reserve_pairs(count)) return no_memory();
        uint32_t rank = 0;
        Text both;
        const char *problem = "a merge that is no pair";
        const bool fine = merges.array([&](Json *value) {
            size_t cut = 0;
            problem = "a merge that is no pair";
            if (!read_merge(value, &both, &cut)) return false;
            problem = "a merge of tokens that are not in its vocab";
            const uint32_t left = id_of(both.data(), cut), right = id_of(both.data() + cut, both.size() - cut);
            const uint32_t merged = id_of(both.data(), both.size());
            if (left == Bpe::kNone || right == Bpe::kNone || merged == Bpe::kNone) return false;
            bpe->add_pair({left, right, rank++, merged});
            return true;
        });
        return fine || refuse(problem);
    }

    bool read_added() {
        Growing raw, normal;
        if (missing(added)) return true;
        Text *texts = &bpe->added_text_;
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
            problem = "an added token that is empty or too long, or has the id of another one";
            if (!supported || text.size() == 0 || text.size() > kLongestToken) return false;
            const uint32_t known = id_of(text.data(), text.size());
            if (known != Bpe::kNone && known != id) return false;
            if (!add_piece(static_cast<uint32_t>(id), known != Bpe::kNone, special, text)) return false;
            const size_t start = texts->size();
            if (!normalized || !bpe->nfc_) texts->add(text.data(), text.size());
            else if (!add_nfc(text.data(), text.size(), texts)) return false;
            return (normalized ? normal : raw).add({start, texts->size() - start, static_cast<uint32_t>(id)}) &&
                   !texts->failed();
        });
        if (!supported) return unsupported("an added token with single_word, lstrip or rstrip");
        return fine ? build(&bpe->raw_, raw, *texts) && build(&bpe->added_, normal, *texts) : refuse(problem);
    }

    // Special tokens, such as the end of a text, are no text.
    bool add_piece(uint32_t id, bool known, bool special, const Text &text) {
        Text *data = bpe->pieces_.data();
        if (known) return !special || bpe->pieces_.empty(id);
        const size_t start = data->size();
        if (!special) add_bytes(letters, text.data(), text.size(), data);
        return bpe->pieces_.add(id, start);
    }
};

bool Bpe::open(const char *name, const char *text, size_t size, Error *error) {
    BpeReader reader = {};
    reader.bpe = this;
    reader.name = name;
    reader.error = error;
    return reader.read(text, size);
}

}  // namespace rwkvflow

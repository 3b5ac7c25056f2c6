// Byte-level BPE as PyPI's `tokenizers` does it for the tokenizer.json of GPT-NeoX: added tokens are cut out, the rest is
// normalized (NFC), cut into words (GPT-2's way), and in each word neighbours are merged, the pair of the lowest rank first
// and of equals the leftmost. What a file asks for beyond that is refused, not ignored.
#include "json.h"
#include "tokenizer.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kNone = ~0u;

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

bool is(const Text &text, const char *word) { return text.size() == strlen(word) && memcmp(text.data(), word, text.size()) == 0; }

// Where the first word of a text ends, by GPT-2's pattern
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
const char *word_end(const char *at, const char *end) {
    const auto left = static_cast<size_t>(end - at);
    if (*at == '\'' && left > 1) {
        if (at[1] == 's' || at[1] == 't' || at[1] == 'm' || at[1] == 'd') return at + 2;
        if (left > 2 && (memcmp(at + 1, "re", 2) == 0 || memcmp(at + 1, "ve", 2) == 0 || memcmp(at + 1, "ll", 2) == 0)) return at + 3;
    }
    const auto class_at = [end](const char *place, uint32_t *size) { return word_class(code_point_at(place, end, size)); };
    uint32_t size;
    WordClass kind = class_at(at, &size);
    if (*at == ' ' && left > 1) {
        uint32_t next;
        const WordClass after = class_at(at + 1, &next);
        if (after != WordClass::kSpace) {
            kind = after;
            size = 1 + next;
        }
    }
    const char *const first = at, *last = at;  // where the first and the last character begin
    at += size;
    while (at != end && class_at(at, &size) == kind) {
        last = at;
        at += size;
    }
    // Of several spaces before a word the last one is left to it.
    return kind == WordClass::kSpace && at != end && last != first ? last : at;
}

}  // namespace

// Memory for one text.
struct Bpe::Work {
    struct Symbol {
        uint32_t id;
        int32_t before, after;  // -1 for none
    };
    struct Merge {
        uint32_t rank, merged;
        int32_t at;
        bool earlier(const Merge &other) const { return rank != other.rank ? rank < other.rank : at < other.at; }
    };

    Error *error;
    Symbol *symbols = nullptr;
    Merge *heap = nullptr;
    size_t room = 0, waiting = 0;

    explicit Work(Error *e) : error(e) {}
    Work(const Work &) = delete;
    Work &operator=(const Work &) = delete;
    ~Work() {
        free(symbols);
        free(heap);
    }

    // For words of so many bytes. A word of n has at most n - 1 pairs, and each of its at most n - 1 merges makes at most two.
    bool reserve(size_t count) {
        if (count <= room) return true;
        free(symbols);
        free(heap);
        room = 2 * count + 64;
        symbols = static_cast<Symbol *>(malloc(room * sizeof(Symbol)));
        heap = static_cast<Merge *>(malloc(3 * room * sizeof(Merge)));
        if (symbols != nullptr && heap != nullptr) return true;
        room = 0;
        return no_memory();
    }
    bool no_memory() const { return fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory to encode a text"); }

    void push(const Merge &merge) {
        size_t at = waiting++;
        for (; at > 0 && merge.earlier(heap[(at - 1) / 2]); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
        heap[at] = merge;
    }
    Merge pop() {
        const Merge first = heap[0], last = heap[--waiting];
        size_t at = 0;
        for (;;) {
            size_t child = 2 * at + 1;
            if (child >= waiting) break;
            if (child + 1 < waiting && heap[child + 1].earlier(heap[child])) ++child;
            if (!heap[child].earlier(last)) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = last;
        return first;
    }
};

static uint64_t slot_of(uint32_t left, uint32_t right) {
    const uint64_t both = (static_cast<uint64_t>(left) << 32 | right) * 0x9e3779b97f4a7c15u;
    return both ^ both >> 29;
}

bool Bpe::find(uint32_t left, uint32_t right, Pair *out) const {
    for (uint64_t slot = slot_of(left, right) & (n_pairs_ - 1);; slot = (slot + 1) & (n_pairs_ - 1)) {
        const Pair &pair = pairs_[slot];
        if (pair.merged == kNone) return false;
        if (pair.left == left && pair.right == right) {
            *out = pair;
            return true;
        }
    }
}

// The symbol at `at` and the one after it may become one.
void Bpe::consider(int32_t at, Work *work) const {
    Pair pair;
    const Work::Symbol *symbols = work->symbols;
    if (at >= 0 && symbols[at].after >= 0 && find(symbols[at].id, symbols[symbols[at].after].id, &pair))
        work->push({pair.rank, pair.merged, at});
}

bool Bpe::word(const char *text, size_t size, Work *work, Ids *out) const {
    if (!work->reserve(size)) return false;
    Work::Symbol *symbols = work->symbols;
    const int32_t count = static_cast<int32_t>(size);
    for (int32_t i = 0; i < count; ++i) {
        const uint32_t id = of_byte_[static_cast<uint8_t>(text[i])];
        if (id == kNone)
            return fail(work->error, RWKV_ERROR_ARGS | RWKV_ERROR_DATA, "the text cannot be told in tokens of this vocabulary: it has none for the byte %u",
                        static_cast<unsigned>(static_cast<uint8_t>(text[i])));
        symbols[i] = {id, i - 1, i + 1 < count ? i + 1 : -1};
    }
    work->waiting = 0;
    for (int32_t i = 0; i < count; ++i) consider(i, work);
    while (work->waiting > 0) {
        const Work::Merge merge = work->pop();
        Work::Symbol &symbol = symbols[merge.at];
        Pair pair;
        // What was merged meanwhile is not there any more.
        if (symbol.id == kNone || symbol.after < 0 || !find(symbol.id, symbols[symbol.after].id, &pair) || pair.merged != merge.merged) continue;
        symbol.id = merge.merged;
        Work::Symbol &gone = symbols[symbol.after];
        gone.id = kNone;
        symbol.after = gone.after;
        if (symbol.after >= 0) symbols[symbol.after].before = merge.at;
        consider(symbol.before, work);
        consider(merge.at, work);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].after) out->add(symbols[i].id);
    return true;
}

bool Bpe::words(const char *text, size_t size, Work *work, Ids *out) const {
    Text spaced;
    if (prefix_space_ && size > 0 && text[0] != ' ') {
        spaced.add(' ');
        spaced.add(text, size);
        if (spaced.failed()) return work->no_memory();
        text = spaced.data();
        size = spaced.size();
    }
    for (const char *end = text + size; text != end;) {
        const char *stop = word_end(text, end);
        if (!word(text, static_cast<size_t>(stop - text), work, out)) return false;
        text = stop;
    }
    return true;
}

// Gives the pieces between the entries of a lexicon to `plain`, and the entries to *out, in order.
template <typename Plain>
static bool cut_out(const Lexicon &lexicon, const char *text, size_t size, Ids *out, Plain plain) {
    size_t start = 0;
    for (size_t at = 0; lexicon.count() > 0 && at < size;) {
        uint32_t id;
        const uint32_t length = lexicon.longest(text + at, size - at, &id);
        if (length == 0) {
            ++at;
            continue;
        }
        if (!plain(text + start, at - start)) return false;
        out->add(id);
        at += length;
        start = at;
    }
    return plain(text + start, size - start);
}

bool Bpe::normalized(const char *text, size_t size, Work *work, Ids *out) const {
    Text composed;
    if (nfc_ && !is_surely_nfc(text, size)) {
        if (!add_nfc(text, size, &composed)) return work->no_memory();
        text = composed.data();
        size = composed.size();
    }
    return cut_out(added_, text, size, out, [&](const char *piece, size_t length) { return words(piece, length, work, out); });
}

bool Bpe::encode(const char *text, size_t size, Ids *out, Error *error) const {
    if (size > INT32_MAX / 4) return fail(error, RWKV_ERROR_ARGS, "a text of %zu bytes is encoded in pieces", size);
    Work work(error);
    return cut_out(raw_, text, size, out, [&](const char *piece, size_t length) { return normalized(piece, length, &work, out); });
}

// ---- reading a tokenizer.json ----------------------------------------------------------------------------------------------

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

    bool refuse(const char *why) { return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: not a tokenizer.json of byte-level BPE: %s", name, why); }
    bool unsupported(const char *what) {
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED, "%s: %s of this tokenizer.json is not supported", name, what);
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
        Member parts[] = {{"model", &model, false},           {"added_tokens", &added, false}, {"normalizer", &normalizer, false},
                          {"pre_tokenizer", &pre_tokenizer, false}, {"decoder", &decoder, false},    {"truncation", &truncation, false},
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
        if (missing(decoder) || !members(&decoder, one) || !plain_string(type, "ByteLevel")) return unsupported("the decoder (ByteLevel is)");
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
            if (!bpe->pieces_.add(id, start) || !tokens.add({strings.size(), key.size(), static_cast<uint32_t>(id)})) return false;
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
        return twice == kNone ? no_memory() : refuse("a token that is there twice");
    }

    uint32_t id_of(const char *text, size_t size) const {
        uint32_t id;
        return size > 0 && lexicon.longest(text, size, &id) == size ? id : kNone;
    }

    // "left right", or [left, right]. Both, one after the other, are in *both.
    static bool read_merge(Json *in, Text *both, size_t *cut) {
        both->clear();
        if (in->next() == '[') {
            int count = 0;
            return in->array([&](Json *part) {
                if (count++ == 1) *cut = both->size();
                return part->string(both);
            }) && count == 2 && !both->failed();
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
        bpe->n_pairs_ = 16;
        while (bpe->n_pairs_ < 2 * count) bpe->n_pairs_ *= 2;
        bpe->pairs_ = static_cast<Bpe::Pair *>(malloc(static_cast<size_t>(bpe->n_pairs_) * sizeof(Bpe::Pair)));
        if (bpe->pairs_ == nullptr) return no_memory();
        for (uint64_t i = 0; i < bpe->n_pairs_; ++i) bpe->pairs_[i] = {kNone, kNone, kNone, kNone};
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
            if (left == kNone || right == kNone || merged == kNone) return false;
            uint64_t slot = slot_of(left, right) & (bpe->n_pairs_ - 1);
            while (bpe->pairs_[slot].merged != kNone && (bpe->pairs_[slot].left != left || bpe->pairs_[slot].right != right))
                slot = (slot + 1) & (bpe->n_pairs_ - 1);
            bpe->pairs_[slot] = {left, right, rank++, merged};  // of two the last one counts
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
            Member parts[] = {{"id", &id_at, false},           {"content", &content, false},      {"special", &special_at, false},
                              {"normalized", &normalized_at, false}, {"single_word", &word, false},     {"lstrip", &left, false},
                              {"rstrip", &right, false}};
            problem = "its added_tokens";
            uint64_t id;
            bool special = false, normalized = true;
            Text text;
            if (!members(value, parts) || !id_at.whole(kMostTokenIds - 1, &id) || !content.string(&text) || text.failed()) return false;
            if (special_at.next() != 0 && !special_at.boolean(&special)) return false;
            normalized = !special;
            if (normalized_at.next() != 0 && !normalized_at.boolean(&normalized)) return false;
            supported = off(word) && off(left) && off(right);
            problem = "an added token that is empty or too long, or has the id of another one";
            if (!supported || text.size() == 0 || text.size() > kLongestToken) return false;
            const uint32_t known = id_of(text.data(), text.size());
            if (known != kNone && known != id) return false;
            if (!add_piece(static_cast<uint32_t>(id), known != kNone, special, text)) return false;
            const size_t start = texts->size();
            if (!normalized || !bpe->nfc_) texts->add(text.data(), text.size());
            else if (!add_nfc(text.data(), text.size(), texts)) return false;
            return (normalized ? normal : raw).add({start, texts->size() - start, static_cast<uint32_t>(id)}) && !texts->failed();
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

// Byte-level BPE as PyPI's `tokenizers` does it for the tokenizer.json of GPT-NeoX: added tokens are cut out, the rest
// is normalized (NFC), cut into words (GPT-2's way), and in each word neighbours are merged, the pair of the lowest
// rank first and of equals the leftmost.
#include "tokenizer/tokenizer.h"

namespace rwkvflow {

namespace {

// Where the first word of a text ends, by GPT-2's pattern
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
const char *word_end(const char *at, const char *end) {
    const auto left = static_cast<size_t>(end - at);
    if (*at == '\'' && left > 1) {
        if (at[1] == 's' || at[1] == 't' || at[1] == 'm' || at[1] == 'd') return at + 2;
        const auto next_two = [at](const char *letters) { return memcmp(at + 1, letters, 2) == 0; };
        if (left > 2 && (next_two("re") || next_two("ve") || next_two("ll"))) return at + 3;
    }
    const auto class_at = [end](const char *place, uint32_t *size) {
        return word_class(code_point_at(place, end, size));
    };
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

    // For words of so many bytes. A word of n has at most n - 1 pairs, and each of its at most n - 1 merges makes at
    // most two.
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

bool Bpe::reserve_pairs(uint64_t count) {
    n_pairs_ = 16;
    while (n_pairs_ < 2 * count) n_pairs_ *= 2;
    pairs_ = static_cast<Pair *>(malloc(static_cast<size_t>(n_pairs_) * sizeof(Pair)));
    if (pairs_ == nullptr) return false;
    for (uint64_t i = 0; i < n_pairs_; ++i) pairs_[i] = {kNone, kNone, kNone, kNone};
    return true;
}

void Bpe::add_pair(const Pair &pair) {
    uint64_t slot = slot_of(pair.left, pair.right) & (n_pairs_ - 1);
    while (pairs_[slot].merged != kNone && (pairs_[slot].left != pair.left || pairs_[slot].right != pair.right))
        slot = (slot + 1) & (n_pairs_ - 1);
    pairs_[slot] = pair;
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
            return fail(work->error, RWKV_ERROR_ARGS | RWKV_ERROR_DATA,
                        "the text cannot be told in tokens of this vocabulary: it has none for the byte %u",
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
        if (symbol.id == kNone || symbol.after < 0) continue;
        if (!find(symbol.id, symbols[symbol.after].id, &pair) || pair.merged != merge.merged) continue;
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
    for (size_t at = 0; !lexicon.empty() && at < size;) {
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
    const auto plain = [&](const char *piece, size_t length) { return words(piece, length, work, out); };
    return cut_out(added_, text, size, out, plain);
}

bool Bpe::encode(const char *text, size_t size, Ids *out, Error *error) const {
    if (size > INT32_MAX / 4) return fail(error, RWKV_ERROR_ARGS, "a text of %zu bytes is encoded in pieces", size);
    Work work(error);
    const auto plain = [&](const char *piece, size_t length) { return normalized(piece, length, &work, out); };
    return cut_out(raw_, text, size, out, plain);
}

}  // namespace rwkvflow

#include "tokenizer/tokenizer.h"

namespace rwkvflow {

namespace {

// A line that is read from front to back.
struct Reader {
    const char *at, *end;

    bool take(char c) {
        if (at == end || *at != c) return false;
        ++at;
        return true;
    }

    bool number(uint64_t *out) {
        const char *start = at;
        *out = 0;
        for (; at != end && *at >= '0' && *at <= '9' && at - start < 9; ++at)
            *out = *out * 10 + static_cast<uint64_t>(*at - '0');
        return at != start;
    }

    bool hexadecimal(int digits, uint32_t *out) {
        *out = 0;
        for (; digits > 0; --digits, ++at) {
            if (at == end) return false;
            const char c = *at;
            const int value = c >= '0' && c <= '9'   ? c - '0'
                              : c >= 'a' && c <= 'f' ? c - 'a' + 10
                              : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (value < 0) return false;
            *out = *out * 16 + static_cast<uint32_t>(value);
        }
        return true;
    }
};

// What follows a backslash in a Python literal.
bool escape(Reader *in, bool bytes, Text *out) {
    if (in->at == in->end) return false;
    const char c = *in->at++;
    uint32_t value;
    switch (c) {
        case 'n': out->add('\n'); return true;
        case 't': out->add('\t'); return true;
        case 'r': out->add('\r'); return true;
        case '\\':
        case '\'':
        case '"': out->add(c); return true;
        case 'x':
            if (!in->hexadecimal(2, &value)) return false;
            if (bytes) out->add(static_cast<char>(value));
            else add_code_point(value, out);
            return true;
        case 'u':
        case 'U':
            if (bytes || !in->hexadecimal(c == 'u' ? 4 : 8, &value) || value >= kNoCharacter || value - 0xd800 < 0x800)
                return false;
            add_code_point(value, out);
            return true;
        default: return false;
    }
}

// 'text', "text", b'bytes' or b"bytes".
bool literal(Reader *in, Text *out) {
    const bool bytes = in->take('b');
    const char quote = in->take('\'') ? '\'' : in->take('"') ? '"' : 0;
    if (quote == 0) return false;
    for (;;) {
        const char *start = in->at;
        while (in->at != in->end && *in->at != quote && *in->at != '\\') {
            if (bytes && static_cast<uint8_t>(*in->at) >= 0x80) return false;
            ++in->at;
        }
        out->add(start, static_cast<size_t>(in->at - start));
        if (in->at == in->end) return false;
        if (*in->at++ == quote) return true;
        if (!escape(in, bytes, out)) return false;
    }
}

}  // namespace

bool Pieces::add(uint64_t id, size_t start) {
    if (id >= kMostTokenIds || data_.failed() || data_.size() >= UINT32_MAX) return false;
    const uint32_t at = static_cast<uint32_t>(id);
    if (at >= room_) {
        const uint32_t room = at + at / 2 + 1024;
        Span *wider = static_cast<Span *>(realloc(spans_, room * sizeof(Span)));
        if (wider == nullptr) return false;
        memset(wider + room_, 0, (room - room_) * sizeof(Span));
        spans_ = wider;
        room_ = room;
    }
    if (spans_[at].known) return false;
    spans_[at] = {static_cast<uint32_t>(start), static_cast<uint32_t>(data_.size() - start), true};
    if (at >= size_) size_ = at + 1;
    return true;
}

bool Pieces::empty(uint64_t id) {
    if (id >= size_ || !spans_[id].known) return false;
    spans_[id].size = 0;
    return true;
}

bool Pieces::get(uint64_t id, const char **data, size_t *size) const {
    if (id >= size_ || !spans_[id].known) return false;
    *data = data_.data() + spans_[id].start;
    *size = spans_[id].size;
    return true;
}

bool World::open(const char *name, const char *text, size_t size, Error *error) {
    const char *const end = text + size;
    const auto refuse = [&](uint64_t line, const char *why) {
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s:%llu: not a vocabulary of World models: %s", name,
                    static_cast<unsigned long long>(line), why);
    };
    if (!is_utf8(text, size)) return refuse(1, "not UTF-8");
    size_t lines = 1;
    for (size_t i = 0; i < size; ++i) lines += text[i] == '\n';
    if (lines > kMostTokenIds) lines = kMostTokenIds + size_t{1};  // one more is found out, as ids come once
    Words words;
    size_t line = 0;
    const char *problem = words.reserve(lines) ? nullptr : "no memory";
    Text *data = pieces_.data();
    while (problem == nullptr && text != end) {
        const char *stop = static_cast<const char *>(memchr(text, '\n', static_cast<size_t>(end - text)));
        Reader in{text, stop == nullptr ? end : stop};
        text = stop == nullptr ? end : stop + 1;
        ++line;
        if (in.end != in.at && in.end[-1] == '\r') --in.end;
        if (in.at == in.end) continue;
        uint64_t id, length;
        const size_t start = data->size();
        if (!in.number(&id) || !in.take(' ') || !literal(&in, data) || !in.take(' ') || !in.number(&length) ||
            in.at != in.end)
            problem = "not an id, a literal and its length";
        else if (data->size() - start != length || length == 0) problem = "another length";
        else if (length > kLongestToken) problem = "too long";
        else if (!pieces_.add(id, start))
            problem = id >= kMostTokenIds ? "the id is too large"
                      : data->failed()    ? "no memory"
                                          : "the id is there already";
        words.add(start, data->size() - start, id);
    }
    if (problem == nullptr && words.count() == 0) problem = "no tokens";
    return problem == nullptr ? build(&words, name, error) : refuse(line, problem);
}

bool World::Words::reserve(size_t most) {
    entries_ = static_cast<Lexicon::Entry *>(malloc(most * sizeof(Lexicon::Entry)));
    starts_ = static_cast<size_t *>(malloc(most * sizeof(size_t)));
    return most == 0 || (entries_ != nullptr && starts_ != nullptr);
}

void World::Words::add(size_t start, size_t size, uint64_t id) {
    starts_[count_] = start;
    entries_[count_++] = {nullptr, static_cast<uint32_t>(size), static_cast<uint32_t>(id), 0};
}

bool World::build(Words *words, const char *name, Error *error) {
    Lexicon::Entry *entries = words->entries_;
    for (size_t i = 0; i < words->count_; ++i) entries[i].data = pieces_.data()->data() + words->starts_[i];
    words->entries_ = nullptr;  // the lexicon frees them
    uint32_t twice;
    if (lexicon_.build(entries, words->count_, &twice)) return true;
    if (twice == ~0u) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %s", name);
    return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA,
                "%s: not a vocabulary of World models: the bytes of token %u are there twice", name, twice);
}

bool World::encode(const char *text, size_t size, Ids *out, Error *error) const {
    for (size_t at = 0; at < size;) {
        uint32_t id;
        const uint32_t length = lexicon_.longest(text + at, size - at, &id);
        if (length == 0)
            return fail(error, RWKV_ERROR_ARGS | RWKV_ERROR_DATA,
                        "the text cannot be told in tokens of this vocabulary: it has none for the byte %u at %zu",
                        static_cast<unsigned>(static_cast<uint8_t>(text[at])), at);
        out->add(id);
        at += length;
    }
    return true;
}

}  // namespace rwkvflow

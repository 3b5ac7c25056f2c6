#include "vocabulary.h"

#include <stdio.h>

namespace {

constexpr size_t kLargest = size_t{64} << 20;  // no vocabulary is larger
constexpr uint32_t kNone = 0xffffffffu;
char g_every_byte[256];

void add_code_point(uint32_t c, Text *out) {
    if (c < 0x80) {
        out->add(static_cast<char>(c));
    } else if (c < 0x800) {
        out->add(static_cast<char>(0xc0 | c >> 6));
        out->add(static_cast<char>(0x80 | (c & 63)));
    } else if (c < 0x10000) {
        out->add(static_cast<char>(0xe0 | c >> 12));
        out->add(static_cast<char>(0x80 | (c >> 6 & 63)));
        out->add(static_cast<char>(0x80 | (c & 63)));
    } else {
        out->add(static_cast<char>(0xf0 | c >> 18));
        out->add(static_cast<char>(0x80 | (c >> 12 & 63)));
        out->add(static_cast<char>(0x80 | (c >> 6 & 63)));
        out->add(static_cast<char>(0x80 | (c & 63)));
    }
}

// A piece of text that is read from front to back.
struct Reader {
    const char *at, *end;

    bool take(char c) {
        if (at == end || *at != c) return false;
        ++at;
        return true;
    }

    bool number(size_t *out) {
        const char *start = at;
        *out = 0;
        for (; at != end && *at >= '0' && *at <= '9' && at - start < 9; ++at) *out = *out * 10 + static_cast<size_t>(*at - '0');
        return at != start;
    }

    bool hexadecimal(int digits, uint32_t *out) {
        *out = 0;
        for (; digits > 0; --digits, ++at) {
            if (at == end) return false;
            const char c = *at;
            const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
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
            if (bytes || !in->hexadecimal(c == 'u' ? 4 : 8, &value) || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
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
    while (in->at != in->end) {
        const char c = *in->at++;
        if (c == quote) return true;
        if (c != '\\') out->add(c);
        else if (!escape(in, bytes, out)) return false;
    }
    return false;
}

bool read_all(const char *path, Text *out) {
    FILE *file = fopen(path, "rb");
    if (file == nullptr) return false;
    char buffer[4096];
    size_t count;
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0 && out->size() <= kLargest) out->add(buffer, count);
    const bool fine = ferror(file) == 0 && !out->failed() && out->size() <= kLargest;
    fclose(file);
    return fine;
}

}  // namespace

Vocabulary::~Vocabulary() {
    free(tokens_);
    free(nodes_);
}

int32_t Vocabulary::new_node() {
    if (n_nodes_ == room_) {
        const size_t room = 2 * room_ + 4096;
        Node *wider = static_cast<Node *>(realloc(nodes_, room * sizeof(Node)));
        if (wider == nullptr) return -1;
        nodes_ = wider;
        room_ = room;
    }
    memset(nodes_[n_nodes_].child, 0, sizeof nodes_[n_nodes_].child);  // the root is nobody's child
    nodes_[n_nodes_].token = kNone;
    return static_cast<int32_t>(n_nodes_++);
}

// A token whose bytes are at the end of data_.
bool Vocabulary::add(size_t id, size_t start, size_t n_vocab) {
    if (id >= n_vocab || data_.size() == start) return false;
    tokens_[id].start = static_cast<uint32_t>(start);
    tokens_[id].size = static_cast<uint32_t>(data_.size() - start);
    int32_t node = 0;
    for (size_t i = start; i < data_.size(); ++i) {
        const uint8_t byte = static_cast<uint8_t>(data_.data()[i]);
        const int halves[] = {byte >> 4, byte & 15};
        for (const int half : halves) {
            int32_t next = nodes_[node].child[half];
            if (next == 0) {
                next = new_node();
                if (next < 0) return false;
                nodes_[node].child[half] = next;
            }
            node = next;
        }
    }
    nodes_[node].token = static_cast<uint32_t>(id);
    return true;
}

bool Vocabulary::parse(const char *text, size_t size, size_t n_vocab, size_t *line) {
    const char *end = text + size;
    size_t added = 0;
    while (text != end) {
        const char *stop = static_cast<const char *>(memchr(text, '\n', static_cast<size_t>(end - text)));
        Reader in{text, stop == nullptr ? end : stop};
        text = stop == nullptr ? end : stop + 1;
        ++*line;
        if (in.end != in.at && in.end[-1] == '\r') --in.end;
        if (in.at == in.end) continue;
        size_t id, length;
        const size_t start = data_.size();
        if (!in.number(&id) || !in.take(' ') || !literal(&in, &data_) || !in.take(' ') || !in.number(&length) || in.at != in.end)
            return false;
        if (data_.failed() || data_.size() - start != length || !add(id, start, n_vocab)) return false;
        ++added;
    }
    return added > 0;
}

bool Vocabulary::open_world(const char *path, size_t n_vocab) {
    Text text;
    if (!read_all(path, &text)) {
        fprintf(stderr, "rwkv: cannot read the vocabulary %s\n", path);
        return false;
    }
    n_tokens_ = n_vocab;
    tokens_ = static_cast<Token *>(calloc(n_vocab, sizeof(Token)));
    size_t line = 0;
    if (tokens_ == nullptr || new_node() < 0 || !parse(text.data(), text.size(), n_vocab, &line)) {
        fprintf(stderr, "rwkv: %s:%zu: not a vocabulary of World models with at most %zu tokens\n", path, line, n_vocab);
        return false;
    }
    return true;
}

bool Vocabulary::encode(const char *text, size_t size, uint32_t **ids, size_t *count) const {
    uint32_t *wider = static_cast<uint32_t *>(realloc(*ids, (*count + size + 1) * sizeof(uint32_t)));
    if (wider == nullptr) return false;
    *ids = wider;
    for (size_t at = 0; at < size;) {
        if (bytes_) {
            wider[(*count)++] = static_cast<uint8_t>(text[at++]);
            continue;
        }
        uint32_t found = kNone;
        size_t end = at;
        int32_t node = 0;
        for (size_t i = at; i < size; ++i) {  // the longest token that fits
            const uint8_t byte = static_cast<uint8_t>(text[i]);
            node = nodes_[node].child[byte >> 4];
            if (node != 0) node = nodes_[node].child[byte & 15];
            if (node == 0) break;
            if (nodes_[node].token != kNone) {
                found = nodes_[node].token;
                end = i + 1;
            }
        }
        if (found == kNone) return false;
        wider[(*count)++] = found;
        at = end;
    }
    return true;
}

void Vocabulary::piece(size_t token, const char **data, size_t *size) const {
    if (bytes_) {
        g_every_byte[token & 255] = static_cast<char>(token & 255);
        *data = token < 256 ? &g_every_byte[token] : "\xff";
        *size = 1;
        return;
    }
    const bool known = token < n_tokens_ && tokens_[token].size > 0;
    *data = known ? data_.data() + tokens_[token].start : "\xff";
    *size = token == 0 ? 0 : known ? tokens_[token].size : 1;
}

// The vocabulary in a GGUF of llama.cpp's `rwkv` tokenizer: as World's, always the longest token that fits.
//
// A token is written as Python's repr writes bytes: \t, \n, \r, \x1f, and any other character after a backslash for
// itself. Tokens of other types than normal ones (the end of a text, padding) are no text.
#include "base/gguf.h"
#include "tokenizer/tokenizer.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kNormal = 1, kUserDefined = 4;  // llama.cpp's types of tokens
constexpr uint64_t kLongestSpelling = 4 * kLongestToken;

int digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

// False for a spelling that ends in the middle, or has no two digits after \x.
bool spelled(const GgufString &from, Text *out) {
    for (uint64_t i = 0; i < from.size; ++i) {
        if (from.data[i] != '\\') {
            out->add(from.data[i]);
            continue;
        }
        if (++i == from.size) return false;
        const char c = from.data[i];
        if (c != 'x') {
            out->add(c == 't' ? '\t' : c == 'n' ? '\n' : c == 'r' ? '\r' : c);
            continue;
        }
        const int high = i + 2 < from.size ? digit(from.data[i + 1]) : -1;
        const int low = i + 2 < from.size ? digit(from.data[i + 2]) : -1;
        if (high < 0 || low < 0) return false;
        out->add(static_cast<char>(16 * high + low));
        i += 2;
    }
    return true;
}

}  // namespace

bool World::open_gguf(const Gguf &gguf, Error *error) {
    const char *name = gguf.name();
    GgufValue listed, kinds;
    const auto refuse = [&](const char *why) {
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: no vocabulary of RWKV: %s", name, why);
    };
    const bool there = gguf.find("tokenizer.ggml.tokens", &listed, error);
    const bool typed = error->flags == 0 && gguf.find("tokenizer.ggml.token_type", &kinds, error);
    if (error->flags != 0) return false;
    if (!there || listed.kind != kGgufArray || listed.inner != kGgufText || listed.count > kMostTokenIds)
        return refuse("its tokens are no list of texts");
    if (typed && (kinds.kind != kGgufArray || (kinds.inner != kGgufInt32 && kinds.inner != kGgufUint32) ||
                  kinds.count != listed.count))
        return refuse("the types of its tokens are no list of as many numbers");
    Words words;
    if (!words.reserve(listed.count)) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %s", name);
    GgufCursor token = {listed.data, listed.end}, kind = {kinds.data, kinds.end};
    for (uint64_t id = 0; id < listed.count; ++id) {
        GgufString text;
        uint32_t type = kNormal;
        if (!token.text(kLongestSpelling, &text) || (typed && !kind.u32(&type)))
            return refuse("a token that is too long");
        if (type != kNormal && type != kUserDefined) continue;
        const size_t start = pieces_.data()->size();
        if (!spelled(text, pieces_.data())) return refuse("a token that is no Python literal");
        const size_t size = pieces_.data()->size() - start;
        if (size == 0 || size > kLongestToken) return refuse("a token that is empty or too long");
        if (!pieces_.add(id, start)) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %s", name);
        words.add(start, size, id);
    }
    return words.count() == 0 ? refuse("no tokens") : build(&words, name, error);
}

}  // namespace rwkvflow

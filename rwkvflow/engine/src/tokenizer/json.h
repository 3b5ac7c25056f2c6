// JSON (RFC 8259) read in place, from front to back: what is not asked for is only checked. No memory but for strings.
#pragma once

#include "tokenizer/unicode.h"

namespace rwkvflow {

class Json {
public:
    Json() = default;
    // The bytes must be UTF-8.
    Json(const char *text, size_t size) : at_(text), end_(text + size) {}

    // Each of these steps over one value (and the space before it). False for another kind, or for what is no JSON.
    bool skip(int depth = 0);
    bool string(Text *out);  // adds it to *out, which may be null
    bool boolean(bool *out);
    bool whole(uint64_t most, uint64_t *out);  // a number without sign, fraction or exponent
    bool null();

    // member(key, &value) must step over the value. A key that comes twice is no error here.
    template <typename Member>
    bool object(Member member) {
        Text key;
        if (!take('{')) return false;
        if (take('}')) return true;
        do {
            key.clear();
            if (!string(&key) || key.failed() || !take(':') || !member(key, this)) return false;
        } while (take(','));
        return take('}');
    }
    // The same for each element.
    template <typename Element>
    bool array(Element element) {
        if (!take('[')) return false;
        if (take(']')) return true;
        do {
            if (!element(this)) return false;
        } while (take(','));
        return take(']');
    }

    bool at_end() {
        space();
        return at_ == end_;
    }
    // The kind of the next value by its first character: { [ " t f n, or any of those of numbers; 0 at the end.
    char next() {
        space();
        return at_ == end_ ? '\0' : *at_;
    }

private:
    void space() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
    }
    bool take(char c) {
        if (next() != c) return false;
        ++at_;
        return true;
    }
    bool word(const char *text);
    bool digits();
    bool number();
    bool hexadecimal(uint32_t *out);
    bool escape(Text *out);

    const char *at_ = nullptr, *end_ = nullptr;
};

}  // namespace rwkvflow

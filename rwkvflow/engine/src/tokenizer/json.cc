#include "tokenizer/json.h"

namespace rwkvflow {

namespace {
constexpr int kDeepest = 64;
}

bool Json::word(const char *text) {
    space();
    const size_t length = strlen(text);
    if (static_cast<size_t>(end_ - at_) < length || memcmp(at_, text, length) != 0) return false;
    at_ += length;
    return true;
}

bool Json::digits() {
    const char *start = at_;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ != start;
}

bool Json::number() {
    take('-');
    if (at_ != end_ && *at_ == '0') ++at_;
    else if (!digits()) return false;
    if (at_ != end_ && *at_ == '.') {
        ++at_;
        if (!digits()) return false;
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
        ++at_;
        if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
        if (!digits()) return false;
    }
    return true;
}

bool Json::skip(int depth) {
    if (depth > kDeepest) return false;
    switch (next()) {
        case '{': return object([depth](const Text &, Json *value) { return value->skip(depth + 1); });
        case '[': return array([depth](Json *value) { return value->skip(depth + 1); });
        case '"': return string(nullptr);
        case 't': return word("true");
        case 'f': return word("false");
        case 'n': return null();
        default: return number();
    }
}

bool Json::null() { return word("null"); }

bool Json::boolean(bool *out) {
    *out = next() == 't';
    return *out ? word("true") : word("false");
}

bool Json::whole(uint64_t most, uint64_t *out) {
    next();
    const char *start = at_;
    if (!digits() || (*start == '0' && at_ - start > 1)) return false;
    if (at_ != end_ && (*at_ == '.' || *at_ == 'e' || *at_ == 'E')) return false;
    *out = 0;
    for (const char *c = start; c != at_; ++c) {
        const uint64_t digit = static_cast<uint64_t>(*c - '0');
        if (*out > (most - digit) / 10 || digit > most) return false;
        *out = *out * 10 + digit;
    }
    return true;
}

bool Json::hexadecimal(uint32_t *out) {
    if (end_ - at_ < 4) return false;
    *out = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
        const char c = *at_;
        const int value = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (value < 0) return false;
        *out = *out * 16 + static_cast<uint32_t>(value);
    }
    return true;
}

// What follows a backslash.
bool Json::escape(Text *out) {
    if (at_ == end_) return false;
    const char c = *at_++;
    const char *const plain = "\"\\/bfnrt", *const means = "\"\\/\b\f\n\r\t";
    const char *found = c == 0 ? nullptr : strchr(plain, c);
    if (found != nullptr) {
        if (out != nullptr) out->add(means[found - plain]);
        return true;
    }
    uint32_t code, low;
    if (c != 'u' || !hexadecimal(&code)) return false;
    if (code - 0xd800 < 0x400) {  // the first half of a pair
        if (end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return false;
        at_ += 2;
        if (!hexadecimal(&low) || low - 0xdc00 >= 0x400) return false;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code - 0xdc00 < 0x400) {
        return false;
    }
    if (out != nullptr) add_code_point(code, out);
    return true;
}

bool Json::string(Text *out) {
    if (!take('"')) return false;
    for (;;) {
        const char *start = at_;
        while (at_ != end_ && *at_ != '"' && *at_ != '\\' && static_cast<uint8_t>(*at_) >= 0x20) ++at_;
        if (out != nullptr) out->add(start, static_cast<size_t>(at_ - start));
        if (at_ == end_ || static_cast<uint8_t>(*at_) < 0x20) return false;
        if (*at_++ == '"') return true;
        if (!escape(out)) return false;
    }
}

}  // namespace rwkvflow

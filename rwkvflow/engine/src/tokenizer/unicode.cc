#include "tokenizer/unicode.h"

#include "tokenizer/unicode_tables.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kHangul = 0xac00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11a7;
constexpr uint32_t kLeads = 19, kVowels = 21, kTails = 28, kSyllables = kLeads * kVowels * kTails;

// The value of the run that holds this code point.
template <size_t N>
uint32_t value_of(const uint32_t (&runs)[N], uint32_t code) {
    size_t low = 0, high = N;  // runs[low] begins at or before it
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (runs[middle] >> 8 <= code) low = middle;
        else high = middle;
    }
    return runs[low] & 255;
}

// ASCII, which most texts are mostly made of, without a search.
struct AsciiClasses {
    uint8_t of[128];
    constexpr AsciiClasses() : of() {
        for (uint32_t code = 0, run = 0; code < 128; ++code) {
            while (kWordClasses[run + 1] >> 8 <= code) ++run;
            of[code] = kWordClasses[run] & 255;
        }
    }
};
constexpr AsciiClasses kAsciiClasses;

uint32_t combining(uint32_t code) { return code < 0x300 || code >= kNoCharacter ? 0 : value_of(kCombining, code); }

// A list of code points, each with its combining class in the low byte.
struct Codes {
    uint32_t *data = nullptr;
    size_t count = 0, room = 0;

    Codes() = default;
    Codes(const Codes &) = delete;
    Codes &operator=(const Codes &) = delete;
    ~Codes() { free(data); }

    bool add(uint32_t code) {
        if (count == room) {
            const size_t wanted = 2 * room + 64;
            uint32_t *wider =
                wanted > SIZE_MAX / 8 ? nullptr : static_cast<uint32_t *>(realloc(data, wanted * sizeof(uint32_t)));
            if (wider == nullptr) return false;
            data = wider;
            room = wanted;
        }
        data[count++] = code << 8 | combining(code);
        return true;
    }
};

bool decompose(uint32_t code, Codes *out) {
    if (code < 0xc0) return out->add(code);
    if (code - kHangul < kSyllables) {
        const uint32_t syllable = code - kHangul, tail = syllable % kTails;
        return out->add(kLead + syllable / (kVowels * kTails)) && out->add(kVowel + syllable / kTails % kVowels) &&
               (tail == 0 || out->add(kTail + tail));
    }
    size_t low = 0, high = sizeof kDecompositions / sizeof kDecompositions[0];
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (kDecompositions[middle].code < code) low = middle + 1;
        else high = middle;
    }
    if (low == sizeof kDecompositions / sizeof kDecompositions[0] || kDecompositions[low].code != code)
        return out->add(code);
    for (uint32_t i = 0; i < kDecompositions[low].count; ++i)
        if (!out->add(kParts[kDecompositions[low].start + i])) return false;
    return true;
}

// 0 where the two do not become one.
uint32_t composite(uint32_t first, uint32_t second) {
    if (first - kLead < kLeads && second - kVowel < kVowels)
        return kHangul + ((first - kLead) * kVowels + (second - kVowel)) * kTails;
    if (first - kHangul < kSyllables && (first - kHangul) % kTails == 0 && second - kTail - 1 < kTails - 1)
        return first + (second - kTail);
    const uint64_t wanted = static_cast<uint64_t>(first) << 32 | second;
    size_t low = 0, high = sizeof kComposites / sizeof kComposites[0];
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const uint64_t pair = static_cast<uint64_t>(kComposites[middle].first) << 32 | kComposites[middle].second;
        if (pair == wanted) return kComposites[middle].composite;
        if (pair < wanted) low = middle + 1;
        else high = middle;
    }
    return 0;
}

// Sorts by class, keeping the order of equals: counted, as a text may have any number of marks in a row.
bool sort_marks(uint32_t *marks, size_t count) {
    if (count < 2) return true;
    uint32_t *copy = static_cast<uint32_t *>(malloc(count * sizeof(uint32_t)));
    if (copy == nullptr) return false;
    memcpy(copy, marks, count * sizeof(uint32_t));
    size_t starts[257] = {};
    for (size_t i = 0; i < count; ++i) ++starts[(copy[i] & 255) + 1];
    for (size_t i = 1; i < 257; ++i) starts[i] += starts[i - 1];
    for (size_t i = 0; i < count; ++i) marks[starts[copy[i] & 255]++] = copy[i];
    free(copy);
    return true;
}

// Puts together what was taken apart.
bool compose(Codes *codes, Text *out) {
    for (size_t i = 0, start; i < codes->count; i = i == start ? i + 1 : i) {
        for (start = i; i < codes->count && (codes->data[i] & 255) != 0;) ++i;
        if (!sort_marks(codes->data + start, i - start)) return false;
    }
    size_t kept = 0, starter = 0;
    bool has_starter = false;
    uint32_t before = 0;  // the class of what was kept last since the starter; 0 for nothing
    for (size_t i = 0; i < codes->count; ++i) {
        const uint32_t code = codes->data[i] >> 8, mark = codes->data[i] & 255;
        if (has_starter && (kept == starter + 1 || (before != 0 && before < mark))) {
            const uint32_t one = composite(codes->data[starter] >> 8, code);
            if (one != 0) {
                codes->data[starter] = one << 8;
                continue;
            }
        }
        if (mark == 0) {
            has_starter = true;
            starter = kept;
        }
        before = mark;
        codes->data[kept++] = codes->data[i];
    }
    for (size_t i = 0; i < kept; ++i) add_code_point(codes->data[i] >> 8, out);
    return !out->failed();
}

// Whether a character is below U+0300, by its first byte. NFC leaves those as they are, but for marks that follow, and
// never changes what is before them.
bool stays(char first_byte) { return static_cast<uint8_t>(first_byte) < 0xcc; }

}  // namespace

uint32_t code_point_at(const char *at, const char *end, uint32_t *size) {
    const auto byte = [at](int i) -> uint32_t { return static_cast<uint8_t>(at[i]); };
    const uint32_t first = byte(0);
    *size = 1;
    if (first < 0x80) return first;
    const uint32_t length = first < 0xc2 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 1;
    if (length == 1 || static_cast<size_t>(end - at) < length) return kNoCharacter + first;
    uint32_t code = first & (0x7fu >> length);
    for (uint32_t i = 1; i < length; ++i) {
        if ((byte(static_cast<int>(i)) & 0xc0) != 0x80) return kNoCharacter + first;
        code = code << 6 | (byte(static_cast<int>(i)) & 63);
    }
    const uint32_t least = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
    if (code < least || code >= kNoCharacter || code - 0xd800 < 0x800) return kNoCharacter + first;
    *size = length;
    return code;
}

void add_code_point(uint32_t c, Text *out) {
    if (c >= kNoCharacter) {
        out->add(static_cast<char>(c - kNoCharacter));
    } else if (c < 0x80) {
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

bool is_utf8(const char *text, size_t size) {
    uint32_t length;
    for (const char *at = text, *end = text + size; at != end; at += length) {
        length = 1;
        if (static_cast<uint8_t>(*at) >= 0x80 && code_point_at(at, end, &length) >= kNoCharacter) return false;
    }
    return true;
}

WordClass word_class(uint32_t code) {
    if (code < 128) return static_cast<WordClass>(kAsciiClasses.of[code]);
    return code >= kNoCharacter ? WordClass::kOther : static_cast<WordClass>(value_of(kWordClasses, code));
}

bool is_surely_nfc(const char *text, size_t size) {
    for (size_t i = 0; i < size; ++i)
        if (!stays(text[i])) return false;
    return true;
}

bool add_nfc(const char *text, size_t size, Text *out) {
    Codes codes;
    uint32_t length = 0;
    const char *const end = text + size;
    while (text != end) {
        // What stays goes over as it is, but for the last one of it, which what follows may change.
        const char *last = text, *at = text;
        for (; at != end && stays(*at); at += length) {
            last = at;
            code_point_at(at, end, &length);
        }
        if (at == end) last = end;
        out->add(text, static_cast<size_t>(last - text));
        codes.count = 0;
        for (text = last; text != end && (text < at || !stays(*text)); text += length)
            if (!decompose(code_point_at(text, end, &length), &codes)) return false;
        if (!compose(&codes, out)) return false;
    }
    return !out->failed();
}

}  // namespace rwkvflow

// What tokenizers need of Unicode: code points, classes, and the normal form NFC.
#pragma once

#include "base/text.h"

namespace rwkvflow {

// A byte that belongs to no character stands for itself as kNoCharacter + the byte: texts need not be UTF-8, and none
// is lost.
inline constexpr uint32_t kNoCharacter = 0x110000;

// The code point at `at`, which is before `end`; *size is how many bytes it has.
uint32_t code_point_at(const char *at, const char *end, uint32_t *size);
void add_code_point(uint32_t code, Text *out);
bool is_utf8(const char *text, size_t size);

enum class WordClass { kOther, kLetter, kNumber, kSpace };  // general categories L and N, and the property White_Space
WordClass word_class(uint32_t code);

// Canonical composition (Unicode Standard Annex 15). False for want of memory.
bool add_nfc(const char *text, size_t size, Text *out);
// Whether the text is what add_nfc would make of it, found out in a moment; false may be wrong.
bool is_surely_nfc(const char *text, size_t size);

}  // namespace rwkvflow

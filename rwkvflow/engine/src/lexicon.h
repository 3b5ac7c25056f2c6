// A set of texts with numbers, made to find the longest that another text begins with.
//
// They are sorted. The last one that is not behind the text, or one that it begins with, is that longest: what stands between
// the longest and the text begins with the longest too. So a search by halves, in the part with the same first two bytes,
// finds it, in memory proportional to the texts.
#pragma once

#include "text.h"

namespace rwkvflow {

class Lexicon {
public:
    struct Entry {
        const char *data;
        uint32_t size, number;
        uint32_t parent;  // 1 + the index of the longest other entry that this one begins with, or 0; found by build()
    };

    Lexicon() = default;
    Lexicon(const Lexicon &) = delete;
    Lexicon &operator=(const Lexicon &) = delete;
    ~Lexicon() {
        free(entries_);
        free(first_);
    }

    // Takes `entries` (from malloc), none of them empty; what they point to must last. False for want of memory, or where two
    // are the same: *twice is then the number of one of them, and ~0 otherwise.
    bool build(Entry *entries, size_t count, uint32_t *twice);

    // The size of the longest entry that the text (of at least one byte) begins with, and its number; 0 for none.
    uint32_t longest(const char *text, size_t size, uint32_t *number) const;

    size_t count() const { return count_; }

private:
    Entry *entries_ = nullptr;
    uint32_t *first_ = nullptr;  // index of the first entry whose first two bytes are not below
    size_t count_ = 0;
};

}  // namespace rwkvflow

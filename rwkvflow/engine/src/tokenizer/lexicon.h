// A set of texts with numbers, made to find the longest that another text begins with.
//
// It is a tree of bytes in one array, known as a double array: a node's child by a byte lies at the node's base ^ that
// byte, and says which byte that is. No two nodes have the same base, so where the byte is right the child is the
// node's own: a step of the search is one look. Children of different nodes lie between each other as they fit, in the
// order of a walk that goes down before it goes on, so that the bytes of a word are near each other: for speed, it is
// caches that count.
//
// Where a text goes on for long without a branch, a jump stands for the bytes. So memory goes by the number of the
// texts, and not by their sizes.
#pragma once

#include "base/text.h"

namespace rwkvflow {

class Lexicon {
public:
    static constexpr uint32_t kNumberBits = 20, kNumbers = 1 << kNumberBits;  // they are below that

    struct Entry {
        const char *data;
        uint32_t size, number;
        uint64_t beginning;  // set by build(), for a quicker comparison
    };

    Lexicon() = default;
    Lexicon(const Lexicon &) = delete;
    Lexicon &operator=(const Lexicon &) = delete;
    ~Lexicon() {
        free(slots_);
        free(jumps_);
    }

    // Takes `entries` (from malloc), none of them empty; what they point to must last. False for want of memory, or
    // where two are the same: *twice is then the number of one of them, and ~0 otherwise.
    bool build(Entry *entries, size_t count, uint32_t *twice);

    // The size of the longest entry that the text (of at least one byte) begins with, and its number; 0 for none.
    uint32_t longest(const char *text, size_t size, uint32_t *number) const {
        if (empty()) return 0;
        Slot last = {slots_[0].base, kFarther << kBackShift};
        const char *at = text, *const end = text + size;
        do {
            const Slot next = slots_[last.base ^ static_cast<uint8_t>(*at)];
            if (!next.follows(*at)) break;
            last = next;
        } while (++at != end);
        const uint32_t passed = static_cast<uint32_t>(at - text);
        *number = last.number();
        // Branches, not arithmetic: so the processor begins with what comes after the entry before it knows the entry.
        if (last.back() == 0) [[likely]]
            return passed;
        return last.back() == kFarther ? longest_on_the_way(text, size, number) : passed - last.back();
    }

    bool empty() const { return slots_ == nullptr; }

private:
    // Where a search ends says what it has found, so that nothing has to be kept on the way. A tag is, from its lowest
    // bit: the byte that leads here; kFull; the number of the longest entry that ends here or before; and how many
    // bytes before. In place of the latter there may be kFarther, for more or for none. The number is then kNone, or
    // the index of a jump; a slot with a jump has base 0, which is no node's, so the search ends.
    static constexpr uint32_t kFull = 1 << 8, kStep = 2 * kFull - 1, kNumberShift = 9,
                              kBackShift = kNumberShift + kNumberBits;
    static constexpr uint32_t kFarther = 7, kNone = kNumbers - 1;
    struct Slot {
        uint32_t base, tag;

        bool follows(char byte) const { return (tag & kStep) == (kFull | static_cast<uint8_t>(byte)); }
        uint32_t number() const { return tag >> kNumberShift & (kNumbers - 1); }
        uint32_t back() const { return tag >> kBackShift; }
    };
    // The bytes after the one that leads here, and the node behind them.
    struct Jump {
        const char *data;
        uint32_t size;
        Slot end;
    };
    friend struct LexiconBuilder;

    uint32_t longest_on_the_way(const char *text, size_t size, uint32_t *number) const;

    Slot *slots_ = nullptr;  // the first is the root, and no child
    Jump *jumps_ = nullptr;
};

}  // namespace rwkvflow

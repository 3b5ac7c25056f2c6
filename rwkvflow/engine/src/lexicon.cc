#include "lexicon.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kPairs = 1 << 16;

int compare(const char *a, size_t a_size, const char *b, size_t b_size) {
    const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order != 0 ? order : a_size < b_size ? -1 : a_size > b_size ? 1 : 0;
}

int by_text(const void *a, const void *b) {
    const Lexicon::Entry *one = static_cast<const Lexicon::Entry *>(a), *two = static_cast<const Lexicon::Entry *>(b);
    return compare(one->data, one->size, two->data, two->size);
}

uint32_t pair_of(const char *text, size_t size) {
    return static_cast<uint32_t>(static_cast<uint8_t>(text[0])) << 8 | (size > 1 ? static_cast<uint8_t>(text[1]) : 0u);
}

bool begins(const char *text, size_t size, const Lexicon::Entry &with) {
    return with.size <= size && memcmp(text, with.data, with.size) == 0;
}

}  // namespace

bool Lexicon::build(Entry *entries, size_t count, uint32_t *twice) {
    *twice = ~0u;
    entries_ = entries;
    count_ = count;
    first_ = static_cast<uint32_t *>(calloc(kPairs + 1, sizeof(uint32_t)));
    if (first_ == nullptr || (entries == nullptr && count > 0)) return false;
    qsort(entries_, count, sizeof(Entry), by_text);
    for (size_t i = 0; i < count; ++i) {
        Entry &entry = entries_[i];
        ++first_[pair_of(entry.data, entry.size) + 1];
        entry.parent = static_cast<uint32_t>(i);  // the one before
        while (entry.parent != 0 && !begins(entry.data, entry.size, entries_[entry.parent - 1])) entry.parent = entries_[entry.parent - 1].parent;
        if (entry.parent != 0 && entries_[entry.parent - 1].size == entry.size) {
            *twice = entry.number;
            return false;
        }
    }
    for (uint32_t i = 0; i < kPairs; ++i) first_[i + 1] += first_[i];
    return true;
}

uint32_t Lexicon::longest(const char *text, size_t size, uint32_t *number) const {
    if (count_ == 0) return 0;
    const uint32_t pair = pair_of(text, size);
    uint32_t low = first_[pair], high = first_[pair + 1];  // entries before low are not behind the text, those from high on are
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (compare(entries_[middle].data, entries_[middle].size, text, size) <= 0) low = middle + 1;
        else high = middle;
    }
    if (low == first_[pair & 0xff00]) return 0;  // none with that first byte
    const Entry &nearest = entries_[low - 1];
    uint32_t common = 0;
    while (common < nearest.size && common < size && nearest.data[common] == text[common]) ++common;
    for (uint32_t at = low; at != 0; at = entries_[at - 1].parent)
        if (entries_[at - 1].size <= common) {
            *number = entries_[at - 1].number;
            return entries_[at - 1].size;
        }
    return 0;
}

}  // namespace rwkvflow

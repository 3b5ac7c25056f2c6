#include "tokenizer/lexicon.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kBlock = 256;       // slots
constexpr uint32_t kOpenBlocks = 2;    // the last ones, where room is looked for
constexpr uint32_t kShortestJump = 8;  // bytes; for fewer, nodes are quicker

// The first eight bytes, as a number of the same order; zeros where there are fewer.
uint64_t beginning(const char *data, uint32_t size) {
    uint64_t out = 0;
    for (uint32_t i = 0; i < 8; ++i) out = out << 8 | (i < size ? static_cast<uint8_t>(data[i]) : 0u);
    return out;
}

int by_text(const void *a, const void *b) {
    const Lexicon::Entry *one = static_cast<const Lexicon::Entry *>(a), *two = static_cast<const Lexicon::Entry *>(b);
    if (one->beginning != two->beginning) return one->beginning < two->beginning ? -1 : 1;
    const int order = memcmp(one->data, two->data, one->size < two->size ? one->size : two->size);
    return order != 0 ? order : one->size < two->size ? -1 : one->size > two->size ? 1 : 0;
}

struct Bits {
    uint64_t words[kBlock / 64];

    bool has(uint32_t i) const { return (words[i / 64] >> i % 64 & 1) != 0; }
    void add(uint32_t i) { words[i / 64] |= uint64_t{1} << i % 64; }
};

struct Block {
    Bits taken, bases;
    uint32_t free;

    // A base of no node whose slots for these bytes are free; kBlock for none. Where n slots are taken, n * count bases
    // are ruled out at most, and n are other nodes' at most. So there is none only where n * (count + 1) >= 256, and as
    // the next block then takes `count`, at least a 17th of all slots is in use, whatever the texts are.
    uint32_t base_for(const uint8_t *bytes, uint32_t count) const {
        if (free < count) return kBlock;
        for (uint32_t word = 0; word < kBlock / 64; ++word)
            for (uint64_t open = ~taken.words[word]; open != 0; open &= open - 1) {
                const uint32_t base = (64 * word + static_cast<uint32_t>(__builtin_ctzll(open))) ^ bytes[0];
                if (bases.has(base)) continue;
                uint32_t fits = 1;
                while (fits < count && !taken.has(base ^ bytes[fits])) ++fits;
                if (fits == count) return base;
            }
        return kBlock;
    }
};

}  // namespace

struct LexiconBuilder {
    // A node, entries [low, high) that go through it, and how many of their bytes lead to it.
    struct Node {
        uint32_t low, high, depth;
        uint32_t where;            // a slot's index, or kJump + a jump's
        uint32_t number, longest;  // of the longest entry that ends on the way, and its size; 0 for none
    };
    static constexpr uint32_t kJump = 1u << 31;

    Lexicon *out;
    Lexicon::Entry *entries;
    Node *nodes = nullptr;  // those to do, the next one last; no entry goes through two of them
    uint32_t waiting = 0;
    uint32_t n_blocks = 0, block_room = 0, n_jumps = 0, jump_room = 0;
    Block blocks[kOpenBlocks] = {};  // the last ones of the array, by their number % kOpenBlocks

    LexiconBuilder(Lexicon *lexicon, Lexicon::Entry *from) : out(lexicon), entries(from) {}
    LexiconBuilder(const LexiconBuilder &) = delete;
    LexiconBuilder &operator=(const LexiconBuilder &) = delete;
    ~LexiconBuilder() {
        free(nodes);
        free(entries);
    }

    bool add_block() {
        if (n_blocks == block_room) {
            const uint32_t room = n_blocks + n_blocks / 2 + 16;
            if (room >= kJump / kBlock) return false;
            void *wider = realloc(out->slots_, size_t{room} * kBlock * sizeof(Lexicon::Slot));
            if (wider == nullptr) return false;
            out->slots_ = static_cast<Lexicon::Slot *>(wider);
            block_room = room;
        }
        memset(out->slots_ + size_t{n_blocks} * kBlock, 0, kBlock * sizeof(Lexicon::Slot));
        blocks[n_blocks++ % kOpenBlocks] = {{}, {}, kBlock};
        return true;
    }

    // Takes slots for the children of a node.
    bool place(const uint8_t *bytes, uint32_t count, uint32_t *base) {
        for (uint32_t at = n_blocks < kOpenBlocks ? 0 : n_blocks - kOpenBlocks;; ++at) {
            if (at == n_blocks && !add_block()) return false;
            Block &block = blocks[at % kOpenBlocks];
            const uint32_t found = block.base_for(bytes, count);
            if (found == kBlock) continue;
            block.bases.add(found);
            for (uint32_t i = 0; i < count; ++i) block.taken.add(found ^ bytes[i]);
            block.free -= count;
            *base = at * kBlock + found;
            return true;
        }
    }

    // How many further bytes the entries [low, high) have in common after so many: as they are sorted, the first and
    // the last.
    uint32_t common(uint32_t low, uint32_t high, uint32_t after) const {
        const Lexicon::Entry &first = entries[low], &last = entries[high - 1];
        const uint32_t most = first.size < last.size ? first.size : last.size;
        uint32_t at = after;
        while (at < most && first.data[at] == last.data[at]) ++at;
        return at - after;
    }

    bool add_jump(const char *data, uint32_t size, uint32_t *index) {
        if (n_jumps == jump_room) {
            const uint32_t room = n_jumps + n_jumps / 2 + 64;
            void *wider = realloc(out->jumps_, room * sizeof(Lexicon::Jump));
            if (wider == nullptr) return false;
            out->jumps_ = static_cast<Lexicon::Jump *>(wider);
            jump_room = room;
        }
        *index = n_jumps++;
        out->jumps_[*index] = {data, size, {}};
        return true;
    }

    // Gives a node its base and its number, and puts its children on the list.
    bool add(Node node, uint32_t *twice) {
        uint32_t base = 0, count = 0;
        if (entries[node.low].size == node.depth) {
            node.number = entries[node.low].number;
            node.longest = node.depth;
            if (++node.low != node.high && entries[node.low].size == node.depth) {
                *twice = entries[node.low].number;
                return false;
            }
        }
        uint8_t bytes[kBlock];
        uint32_t starts[kBlock + 1];
        for (uint32_t i = node.low; i != node.high; ++i) {
            const uint8_t byte = static_cast<uint8_t>(entries[i].data[node.depth]);
            if (count > 0 && bytes[count - 1] == byte) continue;
            bytes[count] = byte;
            starts[count++] = i;
        }
        starts[count] = node.high;
        if (count > 0 && !place(bytes, count, &base)) return false;
        while (count-- > 0) {  // the last one first, as the list is done from its end
            Node child = {starts[count],       starts[count + 1], node.depth + 1,
                          base ^ bytes[count], node.number,       node.longest};
            uint32_t jump = Lexicon::kNone;
            Lexicon::Slot &slot = out->slots_[child.where];
            const uint32_t straight = common(child.low, child.high, child.depth);
            if (straight >= kShortestJump && n_jumps < Lexicon::kNone) {
                if (!add_jump(entries[child.low].data + child.depth, straight, &jump)) return false;
                child.depth += straight;
                child.where = kJump + jump;
            }
            slot.tag = tag(Lexicon::kFarther, jump) | Lexicon::kFull | bytes[count];
            nodes[waiting++] = child;
        }
        Lexicon::Slot &made = node.where < kJump ? out->slots_[node.where] : out->jumps_[node.where - kJump].end;
        const uint32_t back = node.depth - node.longest;
        const bool far = node.longest == 0 || back >= Lexicon::kFarther;
        made = {base,
                (made.tag & Lexicon::kStep) | (far ? tag(Lexicon::kFarther, Lexicon::kNone) : tag(back, node.number))};
        return true;
    }

    static uint32_t tag(uint32_t back, uint32_t number) {
        return back << Lexicon::kBackShift | number << Lexicon::kNumberShift;
    }

    bool build(size_t count, uint32_t *twice) {
        nodes = static_cast<Node *>(malloc(count * sizeof(Node)));
        if (nodes == nullptr || entries == nullptr || !add_block()) return false;
        blocks[0].taken.add(0);  // the root
        blocks[0].bases.add(0);  // of nodes without children
        --blocks[0].free;
        for (size_t i = 0; i < count; ++i) entries[i].beginning = beginning(entries[i].data, entries[i].size);
        qsort(entries, count, sizeof(Lexicon::Entry), by_text);
        nodes[waiting++] = {0, static_cast<uint32_t>(count), 0, 0, 0, 0};
        while (waiting > 0)
            if (!add(nodes[--waiting], twice)) return false;
        void *exact = realloc(out->slots_, size_t{n_blocks} * kBlock * sizeof(Lexicon::Slot));
        if (exact != nullptr) out->slots_ = static_cast<Lexicon::Slot *>(exact);
        return true;
    }
};

bool Lexicon::build(Entry *entries, size_t count, uint32_t *twice) {
    *twice = ~0u;
    LexiconBuilder builder(this, entries);
    return count == 0 || builder.build(count, twice);
}

uint32_t Lexicon::longest_on_the_way(const char *text, size_t size, uint32_t *number) const {
    uint32_t base = slots_[0].base, found = 0;
    for (const char *at = text, *const end = text + size; at != end;) {
        Slot slot = slots_[base ^ static_cast<uint8_t>(*at)];
        if (!slot.follows(*at)) break;
        ++at;
        if (slot.back() == kFarther && slot.number() != kNone) {
            const Jump &jump = jumps_[slot.number()];
            if (static_cast<size_t>(end - at) < jump.size || memcmp(at, jump.data, jump.size) != 0) break;
            at += jump.size;
            slot = jump.end;
        }
        base = slot.base;
        if (slot.back() != 0) continue;
        *number = slot.number();
        found = static_cast<uint32_t>(at - text);
    }
    return found;
}

}  // namespace rwkvflow

#include "tokenizer/bpe_builder.h"

namespace rwkvflow {

namespace {

Letters all_letters() {
    Letters out;
    uint16_t next = 256;
    for (int16_t &byte : out.byte_of) byte = -1;
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        const uint16_t letter = printable ? static_cast<uint16_t>(byte) : next++;
        out.of_byte[byte] = letter;
        out.byte_of[letter] = static_cast<int16_t>(byte);
    }
    return out;
}

// The bytes of a token; one with other letters is text as it stands.
void add_bytes(const Letters &letters, const char *text, size_t size, Text *out) {
    const size_t before = out->size();
    uint32_t length;
    for (const char *at = text, *end = text + size; at != end; at += length) {
        const uint32_t code = code_point_at(at, end, &length);
        if (code >= 324 || letters.byte_of[code] < 0) {
            out->cut(before);
            out->add(text, size);
            return;
        }
        out->add(static_cast<char>(letters.byte_of[code]));
    }
}

constexpr const char *kWrongSize = "a token that is empty or too long";

}  // namespace

BpeBuilder::BpeBuilder(Bpe *bpe, const char *name, const char *kind, Error *error)
    : bpe_(bpe), name_(name), kind_(kind), error_(error), letters_(all_letters()) {}

bool BpeBuilder::refuse(const char *why) {
    return fail(error_, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: not %s: %s", name_, kind_, why);
}

bool BpeBuilder::no_memory() { return fail(error_, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %s", name_); }

bool BpeBuilder::Growing::add(const Start &start) {
    if (count == room) {
        Start *wider = static_cast<Start *>(realloc(data, (2 * room + 64) * sizeof(Start)));
        if (wider == nullptr) return false;
        data = wider;
        room = 2 * room + 64;
    }
    data[count++] = start;
    return true;
}

const char *BpeBuilder::token(uint64_t id, const char *text, size_t size) {
    if (size == 0 || size > kLongestToken) return kWrongSize;
    Text *data = bpe_->pieces_.data();
    const size_t start = data->size();
    add_bytes(letters_, text, size, data);
    if (!bpe_->pieces_.add(id, start) || !tokens_.add({strings_.size(), size, static_cast<uint32_t>(id)}))
        return "two tokens with one id, or no memory";
    strings_.add(text, size);
    return strings_.failed() ? "no memory" : nullptr;
}

bool BpeBuilder::end_tokens() {
    if (!build(&lexicon_, tokens_, strings_)) return false;
    for (uint32_t byte = 0; byte < 256; ++byte) {
        Text letter;
        add_code_point(letters_.of_byte[byte], &letter);
        bpe_->of_byte_[byte] = id_of(letter.data(), letter.size());
    }
    return true;
}

bool BpeBuilder::build(Lexicon *out, const Growing &from, const Text &text) {
    if (from.count == 0) return true;
    Lexicon::Entry *entries = static_cast<Lexicon::Entry *>(malloc(from.count * sizeof(Lexicon::Entry)));
    if (entries == nullptr) return no_memory();
    for (size_t i = 0; i < from.count; ++i)
        entries[i] = {text.data() + from.data[i].at, static_cast<uint32_t>(from.data[i].size), from.data[i].id, 0};
    uint32_t twice;
    if (out->build(entries, from.count, &twice)) return true;
    return twice == Bpe::kNone ? no_memory() : refuse("a token that is there twice");
}

uint32_t BpeBuilder::id_of(const char *text, size_t size) const {
    uint32_t id;
    return size > 0 && lexicon_.longest(text, size, &id) == size ? id : Bpe::kNone;
}

bool BpeBuilder::reserve_merges(uint64_t count) {
    if (count > 4 * uint64_t{kMostTokenIds}) return refuse("more merges than there can be tokens");
    return bpe_->reserve_pairs(count) || no_memory();
}

const char *BpeBuilder::merge(const char *both, size_t size, size_t cut) {
    const uint32_t left = id_of(both, cut), right = id_of(both + cut, size - cut), merged = id_of(both, size);
    if (left == Bpe::kNone || right == Bpe::kNone || merged == Bpe::kNone)
        return "a merge of tokens that are not in its vocab";
    bpe_->add_pair({left, right, rank_++, merged});
    return nullptr;
}

const char *BpeBuilder::added(uint64_t id, const char *text, size_t size, bool special, bool normalized) {
    constexpr const char *kWrong = "an added token that is empty or too long, or has the id of another one";
    if (size == 0 || size > kLongestToken) return kWrong;
    const uint32_t known = id_of(text, size);
    if ((known != Bpe::kNone && known != id) ||
        !add_piece(static_cast<uint32_t>(id), known != Bpe::kNone, special, text, size))
        return kWrong;
    Text *texts = &bpe_->added_text_;
    const size_t start = texts->size();
    if (!normalized || !bpe_->nfc_) texts->add(text, size);
    else if (!add_nfc(text, size, texts)) return "no memory";
    const bool fine = (normalized ? normal_ : raw_).add({start, texts->size() - start, static_cast<uint32_t>(id)}) &&
                      !texts->failed();
    return fine ? nullptr : "no memory";
}

// Special tokens, such as the end of a text, are no text.
bool BpeBuilder::add_piece(uint32_t id, bool known, bool special, const char *text, size_t size) {
    Text *data = bpe_->pieces_.data();
    if (known) return !special || bpe_->pieces_.empty(id);
    const size_t start = data->size();
    if (!special) add_bytes(letters_, text, size, data);
    return bpe_->pieces_.add(id, start);
}

bool BpeBuilder::end_added() {
    return build(&bpe_->raw_, raw_, bpe_->added_text_) && build(&bpe_->added_, normal_, bpe_->added_text_);
}

}  // namespace rwkvflow

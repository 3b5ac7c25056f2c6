// The C API of tokenizers.
#include "tokenizer/tokenizer.h"

#include "base/gguf.h"
#include "base/mapping.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "rwkvflow.h"

using namespace rwkvflow;

// Of the two one is empty, or both: one token a byte.
struct rwkvflow_tokenizer {
    enum Kind { kBytes, kWorld, kJson } kind;
    World world;
    Bpe bpe;
};

// Placement new, as operator new is of the C++ runtime; its header is not there either.
struct Placed {
    void *at;
};
inline void *operator new(size_t, Placed where) noexcept { return where.at; }
inline void operator delete(void *, Placed) noexcept {}

namespace {

constexpr char kUnknown = '\xff';  // in no text

struct EveryByte {
    char bytes[256];
    constexpr EveryByte() : bytes() {
        for (int i = 0; i < 256; ++i) bytes[i] = static_cast<char>(i);
    }
};
constexpr EveryByte kEveryByte;

rwkvflow_tokenizer *create(Error *error) {
    rwkvflow_tokenizer *out = static_cast<rwkvflow_tokenizer *>(malloc(sizeof(rwkvflow_tokenizer)));
    if (out == nullptr) fail(error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory for a tokenizer");
    else ::new (Placed{out}) rwkvflow_tokenizer();
    return out;
}

bool is_gguf(const uint8_t *data, uint64_t bytes) {
    uint32_t magic = 0;
    if (bytes >= 4) memcpy(&magic, data, 4);
    return magic == kGgufMagic;
}

rwkvflow_tokenizer *open_gguf(const char *name, const uint8_t *data, uint64_t bytes, Error *error) {
    Gguf gguf;
    GgufString model;
    if (!gguf.open(name, data, bytes, error) || !gguf.text("tokenizer.ggml.model", &model, error)) return nullptr;
    const bool bpe = model.is("gpt2");
    if (!bpe && !model.is("rwkv")) {
        const bool shown = model.size > 0 && model.size < 40 && model.printable();
        fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED,
             "%s: its tokenizer is \"%.*s\"; librwkv reads \"rwkv\" and \"gpt2\" from a GGUF", name,
             shown ? static_cast<int>(model.size) : 4, shown ? model.data : "none");
        return nullptr;
    }
    rwkvflow_tokenizer *out = create(error);
    if (out == nullptr) return nullptr;
    out->kind = bpe ? rwkvflow_tokenizer::kJson : rwkvflow_tokenizer::kWorld;
    if (bpe ? out->bpe.open_gguf(gguf, error) : out->world.open_gguf(gguf, error)) return out;
    rwkvflow_tokenizer_free(out);
    return nullptr;
}

rwkvflow_tokenizer *open_from(const char *name, const uint8_t *data, uint64_t bytes, Error *error) {
    if (is_gguf(data, bytes)) return open_gguf(name, data, bytes, error);
    if (bytes > kLargestVocabulary) {
        fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: %llu bytes are no vocabulary", name,
             static_cast<unsigned long long>(bytes));
        return nullptr;
    }
    const char *text = reinterpret_cast<const char *>(data);
    const size_t size = static_cast<size_t>(bytes);
    size_t at = 0;
    while (at < size && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t')) ++at;
    const bool json = at < size && text[at] == '{';
    rwkvflow_tokenizer *out = create(error);
    if (out == nullptr) return nullptr;
    out->kind = json ? rwkvflow_tokenizer::kJson : rwkvflow_tokenizer::kWorld;
    if (json ? out->bpe.open(name, text, size, error) : out->world.open(name, text, size, error)) return out;
    rwkvflow_tokenizer_free(out);
    return nullptr;
}

const Pieces &pieces_of(const rwkvflow_tokenizer *t) {
    return t->kind == rwkvflow_tokenizer::kWorld ? t->world.pieces() : t->bpe.pieces();
}

Error *begin() {
    Error *error = global_error();
    error->flags = 0;
    return error;
}

}  // namespace

struct rwkvflow_tokenizer *rwkvflow_tokenizer_bytes(void) {
    rwkvflow_tokenizer *out = create(begin());
    if (out != nullptr) out->kind = rwkvflow_tokenizer::kBytes;
    return out;
}

struct rwkvflow_tokenizer *rwkvflow_tokenizer_open(const char *path) {
    Error *error = begin();
    uint8_t *data;
    uint64_t bytes;
    if (path == nullptr) {
        fail(error, RWKV_ERROR_ARGS, "no path");
        return nullptr;
    }
    if (!read_file(path, kLargestVocabulary, &data, &bytes, error)) return nullptr;
    if (bytes > kLargestVocabulary && is_gguf(data, bytes)) {  // a model: its beginning is looked at where it lies
        free(data);
        Mapping map;
        if (!map_file(path, &map, error)) return nullptr;
        rwkvflow_tokenizer *out = open_from(path, map.data, map.bytes, error);
        unmap_file(&map);
        return out;
    }
    rwkvflow_tokenizer *out = open_from(path, data, bytes, error);
    free(data);
    return out;
}

struct rwkvflow_tokenizer *rwkvflow_tokenizer_from_memory(const void *data, uint64_t bytes) {
    Error *error = begin();
    if (data == nullptr && bytes > 0) {
        fail(error, RWKV_ERROR_ARGS, "no data");
        return nullptr;
    }
    return open_from("the vocabulary", static_cast<const uint8_t *>(data), bytes, error);
}

void rwkvflow_tokenizer_free(struct rwkvflow_tokenizer *tokenizer) {
    if (tokenizer == nullptr) return;
    tokenizer->~rwkvflow_tokenizer();
    free(tokenizer);
}

const char *rwkvflow_tokenizer_kind(const struct rwkvflow_tokenizer *tokenizer) {
    const char *const names[] = {"bytes", "world", "tokenizer.json"};
    return names[tokenizer->kind];
}

uint32_t rwkvflow_tokenizer_size(const struct rwkvflow_tokenizer *tokenizer) {
    return tokenizer->kind == rwkvflow_tokenizer::kBytes ? 256 : pieces_of(tokenizer).size();
}

bool rwkvflow_tokenizer_encode(const struct rwkvflow_tokenizer *tokenizer, const char *text, size_t size,
                               uint32_t *tokens, size_t room, size_t *count) {
    Error *error = begin();
    if (tokenizer == nullptr || (text == nullptr && size > 0) || (tokens == nullptr && room > 0) || count == nullptr)
        return fail(error, RWKV_ERROR_ARGS, "a tokenizer, a text, and places for tokens and their number are needed");
    Ids out = {tokens, room, 0};
    *count = 0;
    bool fine = true;
    if (tokenizer->kind == rwkvflow_tokenizer::kWorld) {
        fine = tokenizer->world.encode(text, size, &out, error);
    } else if (tokenizer->kind == rwkvflow_tokenizer::kJson) {
        fine = tokenizer->bpe.encode(text, size, &out, error);
    } else {
        for (size_t i = 0; i < size; ++i) out.add(static_cast<uint8_t>(text[i]));
    }
    if (fine) *count = out.count;
    return fine;
}

bool rwkvflow_tokenizer_piece(const struct rwkvflow_tokenizer *tokenizer, uint32_t token, const char **data,
                              size_t *size) {
    if (tokenizer->kind == rwkvflow_tokenizer::kBytes && token < 256) {
        *data = &kEveryByte.bytes[token];
        *size = 1;
        return true;
    }
    if (tokenizer->kind != rwkvflow_tokenizer::kBytes && pieces_of(tokenizer).get(token, data, size)) return true;
    if (tokenizer->kind == rwkvflow_tokenizer::kWorld && token == 0) {  // the end of a text
        *data = "";
        *size = 0;
        return true;
    }
    *data = &kUnknown;
    *size = 1;
    return false;
}

bool rwkvflow_tokenizer_ids(const struct rwkvflow_tokenizer *tokenizer, uint32_t *ids, size_t room, size_t *count) {
    Error *error = begin();
    if (tokenizer == nullptr || (ids == nullptr && room > 0) || count == nullptr)
        return fail(error, RWKV_ERROR_ARGS, "a tokenizer, and places for ids and their number are needed");
    Ids out = {ids, room, 0};
    const uint32_t size = rwkvflow_tokenizer_size(tokenizer);
    for (uint32_t id = 0; id < size; ++id) {
        const char *piece;
        size_t length;
        if (rwkvflow_tokenizer_piece(tokenizer, id, &piece, &length)) out.add(id);
    }
    *count = out.count;
    return true;
}

bool rwkvflow_tokenizer_decode(const struct rwkvflow_tokenizer *tokenizer, const uint32_t *tokens, size_t count,
                               char *text, size_t room, size_t *size) {
    Error *error = begin();
    if (tokenizer == nullptr || (tokens == nullptr && count > 0) || (text == nullptr && room > 0) || size == nullptr)
        return fail(error, RWKV_ERROR_ARGS, "a tokenizer, tokens, and places for the text and its size are needed");
    uint64_t total = 0;
    for (size_t i = 0; i < count; ++i) {
        const char *piece;
        size_t length;
        rwkvflow_tokenizer_piece(tokenizer, tokens[i], &piece, &length);
        if (total < room)
            memcpy(text + total, piece, length < room - total ? length : static_cast<size_t>(room - total));
        total = add_sat(total, length);
    }
    *size = static_cast<size_t>(total);
    return true;
}

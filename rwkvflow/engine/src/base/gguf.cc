#include "base/gguf.h"

#include <string.h>

#include "base/memory.h"

namespace rwkvflow {

namespace {

constexpr uint64_t kLargestAlignment = 1 << 20;

// Bytes of a value of a type; 0 for texts, arrays, and types that no file has.
uint64_t scalar_bytes(uint32_t kind) {
    constexpr uint8_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return kind < sizeof kBytes ? kBytes[kind] : 0;
}

template <typename T>
T read(const uint8_t *at) {
    T out;
    memcpy(&out, at, sizeof out);
    return out;
}

// False for a value that is no whole number from 0 on.
bool whole(const GgufValue &value, uint64_t *out) {
    int64_t number;
    switch (value.kind) {
        case 0:
        case 7: *out = value.data[0]; return true;
        case 2: *out = read<uint16_t>(value.data); return true;
        case 4: *out = read<uint32_t>(value.data); return true;
        case 10: *out = read<uint64_t>(value.data); return true;
        case 1: number = read<int8_t>(value.data); break;
        case 3: number = read<int16_t>(value.data); break;
        case 5: number = read<int32_t>(value.data); break;
        case 11: number = read<int64_t>(value.data); break;
        default: return false;
    }
    *out = static_cast<uint64_t>(number);
    return number >= 0;
}

}  // namespace

bool GgufString::is(const char *word) const { return size == strlen(word) && memcmp(data, word, size) == 0; }

bool GgufString::printable() const {
    for (uint64_t i = 0; i < size; ++i)
        if (data[i] < ' ' || data[i] > '~') return false;
    return true;
}

bool GgufCursor::bytes(uint64_t count, const uint8_t **out) {
    if (count > static_cast<uint64_t>(end - at)) return false;
    *out = at;
    at += count;
    return true;
}

bool GgufCursor::u32(uint32_t *out) {
    const uint8_t *from;
    if (!bytes(4, &from)) return false;
    *out = read<uint32_t>(from);
    return true;
}

bool GgufCursor::u64(uint64_t *out) {
    const uint8_t *from;
    if (!bytes(8, &from)) return false;
    *out = read<uint64_t>(from);
    return true;
}

bool GgufCursor::text(uint64_t longest, GgufString *out) {
    const uint8_t *from;
    if (!u64(&out->size) || out->size > longest || !bytes(out->size, &from)) return false;
    out->data = reinterpret_cast<const char *>(from);
    return true;
}

bool GgufCursor::value(uint32_t kind, GgufValue *out) {
    *out = {kind, kind, 1, at, at};
    GgufString text;
    if (kind == kGgufText) {
        if (!this->text(UINT64_MAX, &text)) return false;
    } else if (kind != kGgufArray) {
        const uint64_t size = scalar_bytes(kind);
        if (size == 0 || !bytes(size, &out->data)) return false;
    } else {
        if (!u32(&out->inner) || !u64(&out->count)) return false;
        out->data = at;
        if (out->inner == kGgufText) {
            // Each has a length of 8 bytes at least, so a hostile count ends with the file.
            for (uint64_t i = 0; i < out->count; ++i)
                if (!this->text(UINT64_MAX, &text)) return false;
        } else {
            const uint64_t size = scalar_bytes(out->inner);
            if (size == 0 || !bytes(mul_sat(size, out->count), &out->data)) return false;
        }
    }
    out->end = at;
    return true;
}

bool Gguf::open(const char *name, const uint8_t *data, uint64_t bytes, Error *error) {
    name_ = name;
    begin_ = data;
    end_ = data + bytes;
    GgufCursor cursor = {data, end_};
    uint32_t magic = 0, version = 0;
    if (!cursor.u32(&magic) || magic != kGgufMagic || !cursor.u32(&version) || !cursor.u64(&n_tensors_) ||
        !cursor.u64(&n_pairs_))
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_READ, "%s: the file ends in its header", name);
    if (version != 2 && version != 3)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_VERSION, "%s: a GGUF of version %u; 2 and 3 are known",
                    name, version);
    if (n_pairs_ > kGgufMostPairs)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: it claims %llu metadata", name,
                    static_cast<unsigned long long>(n_pairs_));
    pairs_ = cursor.at;
    for (uint64_t i = 0; i < n_pairs_; ++i) {
        GgufString key;
        GgufValue value;
        uint32_t kind;
        if (!cursor.text(kGgufLongestKey, &key) || !cursor.u32(&kind) || !cursor.value(kind, &value))
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: metadata %llu are cut short or damaged", name,
                        static_cast<unsigned long long>(i));
    }
    tensors_ = cursor.at;
    if (!number("general.alignment", kLargestAlignment, 32, &alignment_, error)) return false;
    if (alignment_ == 0 || (alignment_ & (alignment_ - 1)) != 0)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: an alignment of %llu", name,
                    static_cast<unsigned long long>(alignment_));
    return true;
}

bool Gguf::find(const char *key, GgufValue *out, Error *error) const {
    GgufCursor cursor = {pairs_, end_};
    bool found = false;
    for (uint64_t i = 0; i < n_pairs_; ++i) {
        GgufString name;
        GgufValue value;
        uint32_t kind;
        if (!cursor.text(kGgufLongestKey, &name) || !cursor.u32(&kind) || !cursor.value(kind, &value)) return false;
        if (!name.is(key)) continue;
        if (found) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_KEY, "%s: its %s is there twice", name_, key);
        found = true;
        *out = value;
    }
    return found;
}

bool Gguf::number(const char *key, uint64_t largest, uint64_t missing, uint64_t *out, Error *error) const {
    GgufValue value;
    if (!find(key, &value, error)) {
        *out = missing;
        return error->flags == 0;
    }
    if (whole(value, out) && *out <= largest) return true;
    return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: its %s makes no sense", name_, key);
}

bool Gguf::text(const char *key, GgufString *out, Error *error) const {
    GgufValue value;
    *out = {"", 0};
    if (!find(key, &value, error)) return error->flags == 0;
    GgufCursor cursor = {value.data, value.end};
    if (value.kind == kGgufText && cursor.text(UINT64_MAX, out)) return true;
    return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: its %s is no text", name_, key);
}

bool Gguf::tensor(GgufCursor *cursor, uint64_t index, GgufTensor *out, Error *error) const {
    const uint32_t where = RWKV_ERROR_MODEL_PARAMS;
    const unsigned long long number = index;
    GgufTensor t = {};
    for (uint64_t &dim : t.dims) dim = 1;
    if (!cursor->text(kGgufLongestName, &t.name) || t.name.size == 0 || !t.name.printable())
        return fail(error, where | RWKV_ERROR_KEY, "tensor %llu: cut short, or no name of one", number);
    if (!cursor->u32(&t.n_dims))
        return fail(error, where | RWKV_ERROR_FILE_READ, "tensor %llu: the file ends in its header", number);
    if (t.n_dims < 1 || t.n_dims > kGgufDims)
        return fail(error, where | RWKV_ERROR_SHAPE, "tensor %llu: %u dimensions", number, t.n_dims);
    for (uint32_t i = 0; i < t.n_dims; ++i) {
        if (!cursor->u64(&t.dims[i]))
            return fail(error, where | RWKV_ERROR_FILE_READ, "tensor %llu: the file ends in its header", number);
        if (t.dims[i] == 0 || t.dims[i] > INT64_MAX)
            return fail(error, where | RWKV_ERROR_DIMENSION, "tensor %llu: a dimension of %llu", number,
                        static_cast<unsigned long long>(t.dims[i]));
    }
    if (!cursor->u32(&t.type) || !cursor->u64(&t.offset))
        return fail(error, where | RWKV_ERROR_FILE_READ, "tensor %llu: the file ends in its header", number);
    if (t.offset % alignment_ != 0)
        return fail(error, where | RWKV_ERROR_DATA, "tensor %llu: its data are not aligned", number);
    *out = t;
    return true;
}

uint64_t Gguf::data_at(const GgufCursor &behind) const {
    const uint64_t at = static_cast<uint64_t>(behind.at - begin_);
    return add_sat(at, alignment_ - 1) / alignment_ * alignment_;
}

}  // namespace rwkvflow

// llama.cpp's GGUF files, walked: where metadata and tensors stand. Nothing is copied, and nothing is believed: every
// count, length and offset is checked against the bytes that are there before it is used.
//
// Layout, little-endian (ggml's docs/gguf.md): "GGUF", uint32 version 2 or 3, uint64 number of tensors, uint64 number
// of pairs; a pair is a text (uint64 length, UTF-8), uint32 type, value; an array is uint32 type, uint64 length,
// values. A tensor is a text, uint32 number of dims, uint64 dims (fastest first), uint32 type, uint64 offset into the
// data, which begin at the next multiple of general.alignment (32).
#pragma once

#include <stdint.h>

#include "base/error.h"

namespace rwkvflow {

inline constexpr uint32_t kGgufMagic = 0x46554747u;  // "GGUF"
inline constexpr uint32_t kGgufDims = 4;
inline constexpr uint64_t kGgufLongestKey = 65535;  // bytes
inline constexpr uint64_t kGgufLongestName = 255;   // of a tensor
inline constexpr uint64_t kGgufMostPairs = 1 << 20;

// Types of values that are asked for.
enum GgufKind : uint32_t { kGgufUint32 = 4, kGgufInt32 = 5, kGgufFloat32 = 6, kGgufText = 8, kGgufArray = 9 };

struct GgufString {
    const char *data = "";  // without a zero behind it
    uint64_t size = 0;
    bool is(const char *word) const;
    bool printable() const;  // ASCII without control characters: fit for a message
};

// A value as it stands in the file. Of an array: the type of its elements, their number, and where the first is.
struct GgufValue {
    uint32_t kind = 0, inner = 0;
    uint64_t count = 0;
    const uint8_t *data = nullptr, *end = nullptr;
};

struct GgufTensor {
    GgufString name;           // printable, of 1 to kGgufLongestName bytes
    uint32_t n_dims;           // 1 to kGgufDims
    uint64_t dims[kGgufDims];  // fastest first, each at least 1; unused ones are 1
    uint32_t type;             // ggml's number
    uint64_t offset;           // into the data, a multiple of the alignment
};

// A place in the file.
struct GgufCursor {
    const uint8_t *at, *end;
    bool bytes(uint64_t count, const uint8_t **out);
    bool u32(uint32_t *out);
    bool u64(uint64_t *out);
    bool text(uint64_t longest, GgufString *out);
    bool value(uint32_t kind, GgufValue *out);  // steps over one; false for types that no file has
};

class Gguf {
public:
    // Walks over all metadata. `name` is what messages call the file; bytes begin with the magic. False with FILE and
    // FILE_READ, FILE_VERSION, KEY or DATA.
    bool open(const char *name, const uint8_t *data, uint64_t bytes, Error *error);

    // Whether there is such a key. False with an error, too, where it is there twice: look at error->flags.
    bool find(const char *key, GgufValue *out, Error *error) const;
    // A whole number at most `largest` of any integer type, or `missing` where the key is not there. False with an
    // error.
    bool number(const char *key, uint64_t largest, uint64_t missing, uint64_t *out, Error *error) const;
    // A text; of no bytes where it is missing. False with an error for another type.
    bool text(const char *key, GgufString *out, Error *error) const;

    uint64_t tensors() const { return n_tensors_; }
    // The first tensor is read with a cursor from here; MODEL_PARAMS with FILE_READ, KEY, SHAPE or DIMENSION.
    GgufCursor first_tensor() const { return {tensors_, end_}; }
    bool tensor(GgufCursor *cursor, uint64_t index, GgufTensor *out, Error *error) const;
    // Where the data begin, once all tensors have been stepped over.
    uint64_t data_at(const GgufCursor &behind) const;
    uint64_t alignment() const { return alignment_; }
    const char *name() const { return name_; }

private:
    const char *name_ = nullptr;
    const uint8_t *begin_ = nullptr, *end_ = nullptr, *pairs_ = nullptr, *tensors_ = nullptr;
    uint64_t n_tensors_ = 0, n_pairs_ = 0, alignment_ = 32;
};

}  // namespace rwkvflow

// Model files, read: a table of tensors over a mapped file, rwkv.cpp's or llama.cpp's (model/gguf.h), under the names
// that rwkv.cpp's files have. Every count, size and offset of the file is checked here, so what is in the table can be
// trusted: data lies inside a map and bytes = rows * row_bytes(type, columns).
//
// Layout of rwkv.cpp's (little-endian): six int32 (magic "ggmf", version 100 or 101, n_vocab, n_embd, n_layer, type),
// then until the end of the file: int32 n_dims, key length, type; the dims, fastest first; the key; the data. No
// padding.
#pragma once

#include "base/mapping.h"

namespace rwkvflow {

inline constexpr uint32_t kMaxKey = 256;
inline constexpr uint32_t kMaxDims = 3;

struct Tensor {
    const char *name;  // ends in a zero byte
    int32_t type;
    uint32_t n_dims;
    uint64_t dims[kMaxDims];  // PyTorch's order: rows first; unused ones are 1
    uint64_t elements;
    uint64_t offset, bytes;  // offset: in the part that holds it
    const uint8_t *data;
};

struct File {
    Mapping map;
    Mapping *more = nullptr;  // the other parts of a GGUF in several, in their order
    uint32_t n_more = 0;
    int32_t header[6];
    Tensor *tensors = nullptr;
    uint64_t count = 0;
    uint32_t *slots = nullptr;  // hash table of 1 + index by name, a power of two long
    uint64_t n_slots = 0;
    char *names = nullptr;
    bool old_numbers = false;  // Q4_K and Q5_K numbered as by rwkvflow 0.1
    bool is_gguf = false;
    uint32_t rescale = 0;      // output matrices of layer i are divided by 2^(i / rescale), where it is not 0
    float layer_norm_eps = 0;  // as the file says, 0 where it does not
};

enum HeaderField { kMagic, kVersion, kVocab, kEmbd, kLayers, kType };

// Opens and checks. Flags: FILE with one of FILE_*, MAGIC, VERSION, DATA_TYPE; MODEL_PARAMS with one of SHAPE,
// DIMENSION, DATA_TYPE, KEY, DATA, FILE_READ (truncated); ALLOC. Of a GGUF also UNSUPPORTED.
bool file_open(const char *path, File *file, Error *error);
// Makes the tensors be found by name. False with MODEL_PARAMS | KEY for two of one name, or ALLOC.
bool file_index(File *file, Error *error);
void file_close(File *file);

// The tensor of that name, or null.
const Tensor *file_find(const File &file, const char *name);

const char *type_name(int32_t type);  // "F32", "Q5_1", ...; null for an unknown one

}  // namespace rwkvflow

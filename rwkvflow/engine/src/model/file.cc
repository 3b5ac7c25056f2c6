#include "model/file.h"

#include "base/gguf.h"
#include "base/memory.h"
#include "model/gguf.h"
#include "rwkvflow.h"

namespace rwkvflow {

namespace {

constexpr int32_t kOldQ4_K = 12, kOldQ5_K = 13;  // of rwkvflow 0.1

int32_t read_i32(const uint8_t *at) {
    int32_t out;
    memcpy(&out, at, 4);
    return out;
}

uint64_t hash(const char *name) {
    uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
    for (; *name != 0; ++name) h = (h ^ static_cast<uint8_t>(*name)) * 0x100000001b3u;
    return h;
}

// The type of a number in this file.
int32_t type_of(const File &file, int32_t number) {
    if (!file.old_numbers || (number != kOldQ4_K && number != kOldQ5_K)) return number;
    return number == kOldQ4_K ? RWKVFLOW_Q4_K : RWKVFLOW_Q5_K;
}

// Whether rwkv.cpp's files may hold it.
bool in_bin(int32_t type) { return type <= RWKVFLOW_Q6_K && type_name(type) != nullptr; }

// What models are converted from, by its first bytes; null for anything else.
const char *checkpoint_kind(const uint8_t *head) {
    if (memcmp(head, "PK\3\4", 4) == 0 || (head[0] == 0x80 && head[1] >= 2 && head[1] <= 5)) return "a .pth checkpoint";
    return head[8] == '{' ? "a safetensors checkpoint" : nullptr;
}

bool check_header(const char *path, File *file, Error *error) {
    if (file->map.bytes < 24)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_READ, "%s is too short for a model: %llu bytes", path,
                    static_cast<unsigned long long>(file->map.bytes));
    memcpy(file->header, file->map.data, 24);
    const int32_t *h = file->header;
    const char *kind = checkpoint_kind(file->map.data);
    if (static_cast<uint32_t>(h[kMagic]) != RWKV_FILE_MAGIC && kind != nullptr)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_MAGIC,
                    "%s is %s; first make a .bin of it: rwkvflow convert IN OUT.bin --format ggml-f16", path, kind);
    if (static_cast<uint32_t>(h[kMagic]) != RWKV_FILE_MAGIC)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_MAGIC, "%s is not an rwkv.cpp model file (magic %08x)",
                    path, static_cast<uint32_t>(h[kMagic]));
    if (h[kVersion] < RWKV_FILE_VERSION_MIN || h[kVersion] > RWKV_FILE_VERSION_MAX)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_VERSION, "%s has unknown file version %d", path,
                    h[kVersion]);
    if (!in_bin(h[kType]))
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA_TYPE, "%s has unsupported type %d", path, h[kType]);
    if (h[kVersion] == RWKV_FILE_VERSION_0 && h[kType] > RWKVFLOW_F16)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA_TYPE,
                    "%s: a quantized file of version 100 must be made anew", path);
    if (h[kVocab] <= 0 || h[kEmbd] <= 0 || h[kLayers] <= 0)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DIMENSION,
                    "%s: vocabulary %d, width %d, layers %d make no sense", path, h[kVocab], h[kEmbd], h[kLayers]);
    return true;
}

// Reads the tensor header at *at. With names null only steps over it. Returns false with an error.
bool read_tensor(const File &file, uint64_t *at, Tensor *out, char *name, uint64_t index, Error *error) {
    const uint32_t where = RWKV_ERROR_MODEL_PARAMS;
    const uint8_t *data = file.map.data;
    const uint64_t end = file.map.bytes;
    const unsigned long long number = index;
    if (end - *at < 12)
        return fail(error, where | RWKV_ERROR_FILE_READ, "tensor %llu: the file ends in its header", number);
    const int32_t n_dims = read_i32(data + *at), key_length = read_i32(data + *at + 4);
    const int32_t type = type_of(file, read_i32(data + *at + 8));
    *at += 12;
    if (n_dims < 1 || n_dims > static_cast<int32_t>(kMaxDims))
        return fail(error, where | RWKV_ERROR_SHAPE, "tensor %llu: %d dimensions", number, n_dims);
    if (key_length < 1 || key_length > static_cast<int32_t>(kMaxKey))
        return fail(error, where | RWKV_ERROR_KEY, "tensor %llu: a name of %d bytes", number, key_length);
    if (!in_bin(type))
        return fail(error, where | RWKV_ERROR_DATA_TYPE, "tensor %llu: unsupported type %d", number, type);
    const uint64_t header = static_cast<uint64_t>(n_dims) * 4 + static_cast<uint64_t>(key_length);
    if (end - *at < header)
        return fail(error, where | RWKV_ERROR_FILE_READ, "tensor %llu: the file ends in its header", number);
    Tensor t = {};
    t.type = type;
    t.n_dims = static_cast<uint32_t>(n_dims);
    t.elements = 1;
    for (uint32_t i = 0; i < kMaxDims; ++i) t.dims[i] = 1;
    for (int32_t i = 0; i < n_dims; ++i) {
        const int32_t dim = read_i32(data + *at + 4 * static_cast<uint64_t>(i));
        if (dim <= 0) return fail(error, where | RWKV_ERROR_DIMENSION, "tensor %llu: a dimension of %d", number, dim);
        t.dims[n_dims - 1 - i] = static_cast<uint64_t>(dim);
        t.elements = mul_sat(t.elements, static_cast<uint64_t>(dim));
    }
    *at += 4 * static_cast<uint64_t>(n_dims);
    for (int32_t i = 0; i < key_length; ++i) {
        const uint8_t byte = data[*at + static_cast<uint64_t>(i)];
        if (byte < 0x20 || byte == 0x7f)
            return fail(error, where | RWKV_ERROR_KEY, "tensor %llu: its name holds the byte %d", number, byte);
        if (name != nullptr) name[i] = static_cast<char>(byte);
    }
    if (name != nullptr) name[key_length] = 0;
    *at += static_cast<uint64_t>(key_length);
    const uint64_t columns = t.dims[n_dims - 1];
    const uint64_t row_bytes = rwkvflow_row_bytes(type, columns);
    if (row_bytes == 0)
        return fail(error, where | RWKV_ERROR_SHAPE, "tensor %llu: rows of %llu elements cannot be %s", number,
                    static_cast<unsigned long long>(columns), type_name(type));
    t.bytes = t.elements == UINT64_MAX ? UINT64_MAX : mul_sat(row_bytes, t.elements / columns);
    if (t.bytes > end - *at)
        return fail(error, where | RWKV_ERROR_DATA, "tensor %llu: the file ends in its data", number);
    t.offset = *at;
    t.data = data + *at;
    t.name = name;
    *at += t.bytes;
    *out = t;
    return true;
}

// Steps over all tensors: how many there are, and bytes enough for their names. False with an error.
bool count_tensors(const File &file, uint64_t *names, uint64_t *count, Error *error) {
    *names = *count = 0;
    for (uint64_t at = 24; at < file.map.bytes; ++*count) {
        Tensor tensor = {};
        const uint64_t start = at;
        if (!read_tensor(file, &at, &tensor, nullptr, *count, error)) return false;
        *names += tensor.offset - start;  // more than the name and its end
    }
    return true;
}

bool read_all(const char *path, File *file, Error *error) {
    if (!map_file(path, &file->map, error)) return false;
    if (file->map.bytes >= 4 && static_cast<uint32_t>(read_i32(file->map.data)) == kGgufMagic) {
        file->is_gguf = true;
        return read_gguf(path, file, error);
    }
    if (!check_header(path, file, error)) return false;
    uint64_t names = 0, count = 0;
    if (!count_tensors(*file, &names, &count, error)) {
        if (file->header[kType] != kOldQ4_K && file->header[kType] != kOldQ5_K) return false;
        Error other = {};
        file->old_numbers = true;
        if (!count_tensors(*file, &names, &count, &other)) return false;  // as rwkv.cpp's: the error is that reading's
        *error = {};
        file->header[kType] = type_of(*file, file->header[kType]);
    }
    if (count == 0 || count >= UINT32_MAX / 4)
        return fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_PARAM_MISSING, "%s: %llu tensors", path,
                    static_cast<unsigned long long>(count));
    file->tensors = static_cast<Tensor *>(calloc(count, sizeof(Tensor)));
    file->names = static_cast<char *>(malloc(names));
    if (file->tensors == nullptr || file->names == nullptr)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %llu tensors",
                    static_cast<unsigned long long>(count));
    char *name = file->names;
    uint64_t at = 24;
    for (uint64_t i = 0; i < count; ++i) {
        if (!read_tensor(*file, &at, &file->tensors[i], name, i, error)) return false;
        name += strlen(name) + 1;
        file->count = i + 1;
    }
    return file_index(file, error);
}

}  // namespace

bool file_open(const char *path, File *file, Error *error) {
    if (read_all(path, file, error)) return true;
    file_close(file);
    return false;
}

bool file_index(File *file, Error *error) {
    while (file->n_slots < 2 * file->count + 2) file->n_slots = file->n_slots == 0 ? 16 : 2 * file->n_slots;
    file->slots = static_cast<uint32_t *>(calloc(file->n_slots, sizeof(uint32_t)));
    if (file->slots == nullptr) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for the names");
    for (uint64_t i = 0; i < file->count; ++i) {
        uint64_t slot = hash(file->tensors[i].name) & (file->n_slots - 1);
        for (; file->slots[slot] != 0; slot = (slot + 1) & (file->n_slots - 1))
            if (strcmp(file->tensors[file->slots[slot] - 1].name, file->tensors[i].name) == 0)
                return fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_KEY, "the file has two tensors %s",
                            file->tensors[i].name);
        file->slots[slot] = static_cast<uint32_t>(i + 1);
    }
    return true;
}

void file_close(File *file) {
    free(file->tensors);
    free(file->names);
    free(file->slots);
    unmap_file(&file->map);
    for (uint32_t i = 0; i < file->n_more; ++i) unmap_file(&file->more[i]);
    free(file->more);
    *file = {};
}

const Tensor *file_find(const File &file, const char *name) {
    if (file.n_slots == 0) return nullptr;
    for (uint64_t slot = hash(name) & (file.n_slots - 1); file.slots[slot] != 0;
         slot = (slot + 1) & (file.n_slots - 1)) {
        const Tensor *tensor = &file.tensors[file.slots[slot] - 1];
        if (strcmp(tensor->name, name) == 0) return tensor;
    }
    return nullptr;
}

const char *type_name(int32_t type) {
    switch (type) {
        case RWKVFLOW_F32: return "F32";
        case RWKVFLOW_F16: return "F16";
        case RWKVFLOW_Q4_0: return "Q4_0";
        case RWKVFLOW_Q4_1: return "Q4_1";
        case RWKVFLOW_Q5_0: return "Q5_0";
        case RWKVFLOW_Q5_1: return "Q5_1";
        case RWKVFLOW_Q8_0: return "Q8_0";
        case RWKVFLOW_Q2_K: return "Q2_K";
        case RWKVFLOW_Q3_K: return "Q3_K";
        case RWKVFLOW_Q4_K: return "Q4_K";
        case RWKVFLOW_Q5_K: return "Q5_K";
        case RWKVFLOW_Q6_K: return "Q6_K";
        case RWKVFLOW_IQ3_XXS: return "IQ3_XXS";
        case RWKVFLOW_IQ4_NL: return "IQ4_NL";
        case RWKVFLOW_IQ3_S: return "IQ3_S";
        case RWKVFLOW_IQ4_XS: return "IQ4_XS";
        case RWKVFLOW_BF16: return "BF16";
        default: return nullptr;
    }
}

}  // namespace rwkvflow

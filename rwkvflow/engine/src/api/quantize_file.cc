// rwkv_quantize_model_file: copies a file, tensor by tensor, encoding those that rwkv.cpp would.
#include <errno.h>
#include <stdio.h>

#include "base/memory.h"
#include "base/named.h"
#include "model/file.h"
#include "quantize/blocks.h"
#include "rwkvflow.h"

using namespace rwkvflow;

namespace {

constexpr uint64_t kPiece = 8u << 20;  // bytes encoded at a time

// Every 2-D tensor but the embedding, the head and version 7's low-rank matrices; and whose rows are whole blocks.
bool wanted(const Tensor &tensor) {
    if (tensor.n_dims != 2 || tensor.dims[1] % kBlockLength != 0) return false;
    if (strcmp(tensor.name, "emb.weight") == 0 || strcmp(tensor.name, "head.weight") == 0) return false;
    const char *const kept[] = {"att.v1", "att.v2", "att.a1", "att.a2", "att.w1",
                                "att.w2", "att.g1", "att.g2", "att.r_k"};
    for (const char *part : kept)
        if (strstr(tensor.name, part) != nullptr) return false;
    return true;
}

bool put(FILE *out, const void *data, uint64_t bytes) {
    return fwrite(data, 1, static_cast<size_t>(bytes), out) == bytes;
}

bool put_header(FILE *out, const Tensor &tensor, int32_t type) {
    const uint32_t length = static_cast<uint32_t>(strlen(tensor.name));
    int32_t head[3 + kMaxDims] = {static_cast<int32_t>(tensor.n_dims), static_cast<int32_t>(length), type};
    for (uint32_t i = 0; i < tensor.n_dims; ++i) head[3 + i] = static_cast<int32_t>(tensor.dims[tensor.n_dims - 1 - i]);
    return put(out, head, 4 * (3 + tensor.n_dims)) && put(out, tensor.name, length);
}

bool put_encoded(FILE *out, const Tensor &tensor, int32_t type, Error *error) {
    const uint64_t cols = tensor.dims[1], from = rwkvflow_row_bytes(tensor.type, cols),
                   to = rwkvflow_row_bytes(type, cols);
    const uint64_t piece = kPiece / from > 0 ? kPiece / from : 1;
    void *buffer = malloc(static_cast<size_t>(mul_sat(piece, to)));
    if (buffer == nullptr)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory to encode %.80s", tensor.name);
    bool fine = true;
    for (uint64_t row = 0; fine && row < tensor.dims[0]; row += piece) {
        const uint64_t rows = tensor.dims[0] - row < piece ? tensor.dims[0] - row : piece;
        if (rwkvflow_encode(tensor.type, type, 0, tensor.data + row * from, buffer, rows, cols, 1) != 0)
            fine = fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_DATA, "%.80s cannot be encoded", tensor.name);
        else if (!put(out, buffer, rows * to))
            fine = fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_WRITE, "cannot write: %s", strerror(errno));
    }
    free(buffer);
    return fine;
}

bool write_all(const File &file, int32_t type, FILE *out, Error *error) {
    int32_t header[6];
    memcpy(header, file.header, sizeof header);
    header[kVersion] = RWKV_FILE_VERSION;
    header[kType] = type;
    bool fine = put(out, header, sizeof header);
    for (uint64_t i = 0; fine && i < file.count; ++i) {
        const Tensor &tensor = file.tensors[i];
        const bool encode = wanted(tensor);
        const int32_t to = encode ? type_for_rows(type, tensor.dims[1]) : tensor.type;
        if (encode && is_quantized(tensor.type))
            return fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_UNSUPPORTED, "%.80s is quantized already",
                        tensor.name);
        fine = put_header(out, tensor, to);
        if (fine && encode && !put_encoded(out, tensor, to, error)) return false;
        if (fine && !encode) fine = put(out, tensor.data, tensor.bytes);
    }
    return fine || fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_WRITE, "cannot write: %s", strerror(errno));
}

bool quantize_to(const File &file, int32_t type, const char *path, Error *error) {
    // Written beside and renamed: the result is whole or absent, and may replace its own source.
    const size_t length = strlen(path);
    char *part = static_cast<char *>(malloc(length + 6));
    if (part == nullptr) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for a path");
    memcpy(part, path, length);
    memcpy(part + length, ".part", 6);
    FILE *out = open_named(part, "wb");
    bool fine = false;
    if (out == nullptr) {
        fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN, "cannot open %s: %s", part, strerror(errno));
    } else {
        fine = write_all(file, type, out, error);
        if (fclose(out) != 0 && fine)
            fine = fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_WRITE, "cannot write: %s", strerror(errno));
        if (fine && !rename_named(part, path))
            fine = fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_WRITE, "cannot name it %s: %s", path, strerror(errno));
        if (!fine) remove_named(part);
    }
    free(part);
    return fine;
}

}  // namespace

bool rwkv_quantize_model_file(const char *model_file_path_in, const char *model_file_path_out,
                              const char *format_name) {
    Error *error = global_error();
    error->flags = 0;
    if (model_file_path_in == nullptr || model_file_path_out == nullptr || format_name == nullptr)
        return fail(error, RWKV_ERROR_ARGS, "two paths and a format are needed");
    int32_t type = -1;
    for (int32_t candidate = RWKVFLOW_Q4_0; candidate <= RWKVFLOW_Q5_K; ++candidate)
        if (type_name(candidate) != nullptr && strcmp(type_name(candidate), format_name) == 0) type = candidate;
    if (type < 0)
        return fail(error, RWKV_ERROR_ARGS | RWKV_ERROR_DATA_TYPE,
                    "no format %.40s; use Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K or Q5_K", format_name);
    File file;
    if (!file_open(model_file_path_in, &file, error)) return false;
    bool fine = false;
    if (file.is_gguf)
        fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED, "%s is a GGUF; a .bin is quantized from a .bin",
             model_file_path_in);
    else if (file.header[kType] > RWKVFLOW_F16)
        fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA_TYPE, "%s is quantized already (%s)", model_file_path_in,
             type_name(file.header[kType]));
    else fine = quantize_to(file, type, model_file_path_out, error);
    file_close(&file);
    return fine;
}

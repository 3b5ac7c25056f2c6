#include "model/bind.h"

#include <stdio.h>

#include "quantize/quantize.h"

namespace rwkvflow {

namespace {

void low_rank(Model *model, uint32_t rows) {
    if (rows > model->n_low) model->n_low = rows;
}

bool is_float(int32_t type) { return type == kF32 || type == kF16 || type == kBF16; }

}  // namespace

const Tensor *Binder::find(const char *name, bool optional) {
    if (failed) return nullptr;
    char full[128];
    if (name[0] == '/') snprintf(full, sizeof full, "%s", name + 1);
    else snprintf(full, sizeof full, "blocks.%u.%s", layer, name);
    const Tensor *tensor = file_find(model->file, full);
    if (tensor == nullptr && !optional) {
        failed = true;
        fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_PARAM_MISSING, "the file has no tensor %s", full);
    }
    return tensor;
}

void Binder::bad_shape(const Tensor *tensor, const char *wanted) {
    failed = true;
    char shape[80];
    int at = 0;
    for (uint32_t i = 0; i < tensor->n_dims; ++i)
        at += snprintf(shape + at, sizeof shape - static_cast<size_t>(at), "%s%llu", i == 0 ? "" : ", ",
                       static_cast<unsigned long long>(tensor->dims[i]));
    fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_SHAPE, "%.80s has shape [%s], not %s", tensor->name, shape,
         wanted);
}

Matrix Binder::matrix(const char *name, uint32_t rows, uint32_t cols) {
    const Tensor *tensor = find(name);
    if (tensor == nullptr) return {};
    if (tensor->n_dims != 2 || (rows != 0 && tensor->dims[0] != rows) || (cols != 0 && tensor->dims[1] != cols)) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "[%u, %u] (0: any)", rows, cols);
        bad_shape(tensor, wanted);
        return {};
    }
    if (is_quantized(tensor->type)) model->quantized = true;
    if (rows == 0) low_rank(model, static_cast<uint32_t>(tensor->dims[0]));
    return {tensor->data, tensor->bytes / tensor->dims[0], static_cast<uint32_t>(tensor->dims[0]),
            static_cast<uint32_t>(tensor->dims[1]), tensor->type};
}

Matrix Binder::part(const char *name, uint32_t parts, uint32_t index, uint32_t rows, uint32_t cols) {
    const Tensor *tensor = find(name);
    if (tensor == nullptr) return {};
    if (tensor->n_dims != 3 || tensor->dims[0] != parts || tensor->dims[1] != rows || tensor->dims[2] != cols) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "[%u, %u, %u]", parts, rows, cols);
        bad_shape(tensor, wanted);
        return {};
    }
    if (is_quantized(tensor->type)) model->quantized = true;
    const uint64_t bytes = tensor->bytes / parts;
    return {tensor->data + bytes * index, bytes / rows, rows, cols, tensor->type};
}

float *Binder::copy(const Tensor *tensor, uint64_t first, uint32_t count) {
    float *out = vectors == nullptr ? nullptr : vectors + used;
    used += (static_cast<uint64_t>(count) + kSlice - 1) / kSlice * kSlice;
    if (out != nullptr) {
        dequantize_row(tensor->type, tensor->data + row_bytes(tensor->type, first), out, count);
    }
    return out;
}

const float *Binder::vector(const char *name, uint32_t count, bool complement, uint32_t repeat) {
    const Tensor *tensor = find(name);
    if (tensor == nullptr) return nullptr;
    if (!is_float(tensor->type)) {
        failed = true;
        fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_DATA_TYPE, "%.80s has type %s", tensor->name,
             type_name(tensor->type));
        return nullptr;
    }
    const bool repeated = repeat > 1 && tensor->elements == count / repeat;
    if (tensor->elements != count && !repeated) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "%u elements", count);
        bad_shape(tensor, wanted);
        return nullptr;
    }
    const uint64_t start = used;
    float *out = copy(tensor, 0, static_cast<uint32_t>(tensor->elements));
    used = start + (static_cast<uint64_t>(count) + kSlice - 1) / kSlice * kSlice;
    if (out == nullptr) return nullptr;
    if (repeated)
        for (uint32_t i = count; i-- > 0;) out[i] = out[i / repeat];
    if (complement)
        for (uint32_t i = 0; i < count; ++i) out[i] = 1.0f - out[i];
    return out;
}

const float *Binder::vector_part(const char *name, uint32_t count, uint32_t parts, uint32_t index) {
    const Tensor *tensor = find(name);
    if (tensor == nullptr) return nullptr;
    if (tensor->elements != static_cast<uint64_t>(count) * parts || !is_float(tensor->type)) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "%u times %u elements of floats", parts, count);
        bad_shape(tensor, wanted);
        return nullptr;
    }
    return copy(tensor, static_cast<uint64_t>(count) * index, count);
}

}  // namespace rwkvflow

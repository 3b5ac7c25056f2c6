// Finding a layer's tensors by name and checking their shapes. After the first error all calls do nothing, so a
// version's bind function is a plain list. It runs twice: first with `vectors` null, which only counts the floats that
// vectors need.
#pragma once

#include "base/memory.h"
#include "model/model.h"

namespace rwkvflow {

struct Binder {
    Model *model;
    Error *error;
    uint32_t layer;
    float *vectors;  // where copies of vectors go, or null while counting
    uint64_t used;   // floats
    bool failed;

    // The tensor "blocks.{layer}.{name}" (a name that starts with '/' is the whole name, without the slash). Missing:
    // an error, or null where optional.
    const Tensor *find(const char *name, bool optional = false);
    // A 2-D tensor of exactly this shape. 0 columns or rows: any.
    Matrix matrix(const char *name, uint32_t rows, uint32_t cols);
    // One of the equal parts of a 3-D tensor [parts, rows, cols].
    Matrix part(const char *name, uint32_t parts, uint32_t index, uint32_t rows, uint32_t cols);
    // count floats, whatever the dims. A tensor with count / repeat elements has each of them repeated, where repeat
    // > 1. complement: 1 - value is kept.
    const float *vector(const char *name, uint32_t count, bool complement = false, uint32_t repeat = 1);
    // Row `index` of a tensor of `parts` times count elements.
    const float *vector_part(const char *name, uint32_t count, uint32_t parts, uint32_t index);

    void bad_shape(const Tensor *tensor, const char *wanted);

private:
    float *copy(const Tensor *tensor, uint64_t first, uint32_t count);
};

}  // namespace rwkvflow

// Rows quantized with an importance matrix, and the IQ types. Plain functions, safe to call from any thread; see
// quantize.h.
#pragma once

#include <stdint.h>

namespace rwkvflow {

// `count` floats, a whole row, to `dst`, where the error of column i counts importance[i] times; null is quantize_row.
// Returns whether all is finite, as quantize_row does.
bool quantize_row_weighted(int32_t type, const float *src, const float *importance, void *dst, uint64_t count);

// IQ4_NL, IQ4_XS, IQ3_XXS or IQ3_S; importance may be null.
bool quantize_row_iq(int32_t type, const float *src, const float *importance, void *dst, uint64_t count);
void dequantize_row_iq(int32_t type, const void *src, float *dst, uint64_t count);

}  // namespace rwkvflow

// What the set `amx` has of its own; all else in it is of the set `avx512`. Fewer than a tile's worth of tokens, and
// types that tiles do not multiply, are left to that one, too.
#pragma once

#include "kernels/common/kernels.h"

namespace rwkvflow {

void amx_matmul(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y,
                uint32_t ldy, void *scratch);
void amx_quantize(const Activations *x, uint32_t t0, uint32_t t1, uint32_t tokens, uint32_t c0, uint32_t c1);
uint64_t amx_most_products(Products kind, uint32_t rounds);

// The same source over the model of amx_tiles.h, in rwkv-check alone; amx_model_multiplied counts this thread's
// products of tiles.
void amx_model_matmul(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y,
                      uint32_t ldy, void *scratch);
void amx_model_quantize(const Activations *x, uint32_t t0, uint32_t t1, uint32_t tokens, uint32_t c0, uint32_t c1);
uint64_t amx_model_multiplied();

}  // namespace rwkvflow

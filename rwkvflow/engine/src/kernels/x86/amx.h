// What the set `amx` has of its own; all else in it is of the set `avx512`. Fewer than a tile's worth of tokens, and
// types that tiles do not multiply, are left to that one, too.
#pragma once

#include "kernels/common/kernels.h"

namespace rwkvflow {

void amx_matmul(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y,
                uint32_t ldy, void *scratch);
void amx_quantize(const Activations *x, uint32_t t, uint32_t tokens, uint32_t c0, uint32_t c1);
uint64_t amx_most_products(Products kind, uint32_t rounds);

// The same source over the model of amx_tiles.h, in rwkv-check alone; amx_model_multiplied counts this thread's
// products of tiles.
void amx_model_matmul(const Matrix *w, const Activations *x, uint32_t tokens, uint32_t row0, uint32_t row1, float *y,
                      uint32_t ldy, void *scratch);
void amx_model_quantize(const Activations *x, uint32_t t, uint32_t tokens, uint32_t c0, uint32_t c1);
uint64_t amx_model_multiplied();

// What a processor and its operating system say of AMX: CPUID 7, register D; the register XCR0, of what the system
// saves; CPUID 0x1d, register A, and its part 1, registers A to C: the one shape of tiles there is.
struct AmxFacts {
    uint32_t features, saved, palettes, tile_bytes, row_bytes, rows;
};
// Whether those tiles can be used once the system permits it. A virtual machine may say that there is AMX and save no
// tiles.
bool amx_usable(const AmxFacts &facts);

}  // namespace rwkvflow

// Between float32 and every type of blocks.h. Plain functions, safe to call from any thread.
//
// Bytes written are the same on every processor and at every thread count: strict IEEE single precision, no fused
// multiply-add (compile with -ffp-contract=off), no libm. They equal what ggml's reference quantizers write.
#pragma once

#include <stdint.h>

#include "quantize/blocks.h"

namespace rwkvflow {

// Bytes of `count` weights of a type; 0 for an unknown type, or where count is no multiple of its block length.
uint64_t row_bytes(int32_t type, uint64_t count);

// `count` floats to `dst`. count must be a multiple of the type's block length; see row_bytes. Returns whether all is
// finite: false when a float or half that was written, or the scale of a block, is an infinity or NaN. A NaN or
// infinity among the sources always shows in a scale.
bool quantize_row(int32_t type, const float *src, void *dst, uint64_t count);

// The other direction, exact but for the rounding of d * q and of adding m (two roundings, in this order).
void dequantize_row(int32_t type, const void *src, float *dst, uint64_t count);

bool quantize_row_f32(const float *src, void *dst, uint64_t count);
bool quantize_row_f16(const float *src, void *dst, uint64_t count);
bool quantize_row_bf16(const float *src, void *dst, uint64_t count);
bool quantize_row_q4_0(const float *src, void *dst, uint64_t count);
bool quantize_row_q4_1(const float *src, void *dst, uint64_t count);
bool quantize_row_q5_0(const float *src, void *dst, uint64_t count);
bool quantize_row_q5_1(const float *src, void *dst, uint64_t count);
bool quantize_row_q8_0(const float *src, void *dst, uint64_t count);
bool quantize_row_q4_k(const float *src, void *dst, uint64_t count);
bool quantize_row_q5_k(const float *src, void *dst, uint64_t count);
bool quantize_row_q2_k(const float *src, void *dst, uint64_t count);
bool quantize_row_q3_k(const float *src, void *dst, uint64_t count);
bool quantize_row_q6_k(const float *src, void *dst, uint64_t count);

void dequantize_row_f16(const void *src, float *dst, uint64_t count);
void dequantize_row_bf16(const void *src, float *dst, uint64_t count);
void dequantize_row_q4_0(const void *src, float *dst, uint64_t count);
void dequantize_row_q4_1(const void *src, float *dst, uint64_t count);
void dequantize_row_q5_0(const void *src, float *dst, uint64_t count);
void dequantize_row_q5_1(const void *src, float *dst, uint64_t count);
void dequantize_row_q8_0(const void *src, float *dst, uint64_t count);
void dequantize_row_q4_k(const void *src, float *dst, uint64_t count);
void dequantize_row_q5_k(const void *src, float *dst, uint64_t count);
void dequantize_row_q2_k(const void *src, float *dst, uint64_t count);
void dequantize_row_q3_k(const void *src, float *dst, uint64_t count);
void dequantize_row_q6_k(const void *src, float *dst, uint64_t count);

}  // namespace rwkvflow

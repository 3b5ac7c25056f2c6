// The converter's way into the engine: rows of a checkpoint to rows of an artifact.
#include <stdint.h>
#include <stdlib.h>

#include "quantize/quantize.h"
#include "quantize/weighted.h"
#include "rwkvflow.h"

namespace rwkvflow {
namespace {

constexpr uint64_t kPiece = 2048;  // weights converted at a time through float32; a multiple of every block's length

bool is_float_type(int32_t type) { return type == kF32 || type == kF16 || type == kBF16; }

// At least 0 and finite; and not all 0 over 32 columns, which would leave a block without anything to count by.
bool importance_is_sound(const float *importance, uint64_t cols) {
    bool sound = true;
    for (uint64_t at = 0; at < cols; at += kBlockLength) {
        float sum = 0.0f;
        for (uint64_t i = at; i < at + kBlockLength && i < cols; ++i) {
            sound &= importance[i] >= 0.0f && (float_bits(importance[i]) & 0x7f800000u) != 0x7f800000u;
            sum += importance[i];
        }
        sound &= sum > 0.0f;
    }
    return sound;
}

}  // namespace
}  // namespace rwkvflow

using namespace rwkvflow;

extern "C" {

RWKV_API uint64_t rwkvflow_row_bytes(int32_t type, uint64_t cols) { return row_bytes(type, cols); }

// Status: 0, or 1 when all is written and a value (of a block: its scale) is an infinity or NaN, -1 for a type that
// cannot be read or written, -2 for sizes or pointers that make no sense.
RWKV_API int32_t rwkvflow_encode(int32_t src_type, int32_t dst_type, int32_t via_f16, const void *src, void *dst,
                                 uint64_t rows, uint64_t cols, uint32_t) {
    if (!is_float_type(src_type) || block_length(dst_type) == 0) return -1;
    if (cols % block_length(dst_type) != 0) return -2;
    if (cols != 0 && rows > UINT64_MAX / 8 / cols) return -2;
    const uint64_t total = rows * cols;
    if (total == 0) return 0;
    if (src == nullptr || dst == nullptr) return -2;

    // No block spans rows, so pieces need not end where rows do.
    const uint8_t *from = static_cast<const uint8_t *>(src);
    uint8_t *to = static_cast<uint8_t *>(dst);
    bool finite = true;
    for (uint64_t at = 0; at < total; at += kPiece) {
        const uint64_t count = total - at < kPiece ? total - at : kPiece;
        float values[kPiece];
        dequantize_row(src_type, from + at * block_bytes(src_type), values, count);
        if (via_f16 != 0) {
            uint16_t halves[kPiece];
            quantize_row_f16(values, halves, count);
            dequantize_row_f16(halves, values, count);
        }
        finite &= quantize_row(dst_type, values, to + row_bytes(dst_type, at), count);
    }
    return finite ? 0 : 1;
}

// Rows are whole here, since some types count by the mean of the row.
RWKV_API int32_t rwkvflow_encode_weighted(int32_t src_type, int32_t dst_type, int32_t via_f16, const void *src,
                                          void *dst, uint64_t rows, uint64_t cols, const float *importance) {
    if (importance == nullptr) return rwkvflow_encode(src_type, dst_type, via_f16, src, dst, rows, cols, 1);
    if (!is_float_type(src_type) || block_length(dst_type) == 0) return -1;
    if (cols % block_length(dst_type) != 0) return -2;
    if (cols != 0 && rows > UINT64_MAX / 8 / cols) return -2;
    if (rows * cols == 0) return 0;
    if (src == nullptr || dst == nullptr) return -2;
    if (!importance_is_sound(importance, cols)) return -3;
    float *values = static_cast<float *>(malloc(cols * sizeof(float)));
    uint16_t *halves = static_cast<uint16_t *>(malloc(cols * sizeof(uint16_t)));
    int32_t status = values == nullptr || halves == nullptr ? -2 : 0;
    const uint64_t from = cols * block_bytes(src_type), to = row_bytes(dst_type, cols);
    for (uint64_t row = 0; status >= 0 && row < rows; ++row) {
        dequantize_row(src_type, static_cast<const uint8_t *>(src) + row * from, values, cols);
        if (via_f16 != 0) {
            quantize_row_f16(values, halves, cols);
            dequantize_row_f16(halves, values, cols);
        }
        if (!quantize_row_weighted(dst_type, values, importance, static_cast<uint8_t *>(dst) + row * to, cols))
            status = 1;
    }
    free(values);
    free(halves);
    return status;
}

// How many of `count` values of F32, F16 or BF16 are infinite or NaN; 0 for another type.
RWKV_API uint64_t rwkvflow_count_not_finite(int32_t src_type, const void *src, uint64_t count) {
    uint64_t found = 0;
    if (src_type == kF32) {
        const uint32_t *bits = static_cast<const uint32_t *>(src);
        for (uint64_t i = 0; i < count; ++i) found += (bits[i] & 0x7f800000u) == 0x7f800000u;
    } else if (src_type == kF16 || src_type == kBF16) {
        const uint16_t mask = src_type == kF16 ? 0x7c00u : 0x7f80u;
        const uint16_t *bits = static_cast<const uint16_t *>(src);
        for (uint64_t i = 0; i < count; ++i) found += (bits[i] & mask) == mask;
    }
    return found;
}

}  // extern "C"

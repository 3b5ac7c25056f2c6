// The converter's way into the engine: rows of a checkpoint to rows of an artifact.
#include <stdint.h>

#include "quantize/quantize.h"
#include "rwkvflow.h"

namespace rwkvflow {
namespace {

constexpr uint64_t kPiece = 2048;  // weights converted at a time through float32; a multiple of every block's length

bool is_float_type(int32_t type) { return type == kF32 || type == kF16 || type == kBF16; }

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

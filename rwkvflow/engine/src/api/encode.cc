// The converter's door into the engine: rows of a checkpoint to rows of an artifact, by several threads.
#include <pthread.h>
#include <stdint.h>

#include "quantize/quantize.h"
#include "rwkvflow.h"

namespace rwkvflow {
namespace {

constexpr uint64_t TILE = 2048;          // weights converted at a time through float32; a multiple of kBlockLength
constexpr uint64_t WORTH_A_THREAD = 65536;  // fewer weights than this are not worth starting a thread for
constexpr uint32_t MOST_THREADS = 64;

struct Part {
    int32_t src_type;
    int32_t dst_type;
    bool via_f16;
    const uint8_t *src;
    uint8_t *dst;
    uint64_t count;
    bool finite;
};

void *encode_part(void *argument) {
    Part *part = (Part *)argument;
    float values[TILE];
    uint16_t halves[TILE];
    const uint64_t src_bytes = block_bytes(part->src_type);
    part->finite = true;
    for (uint64_t at = 0; at < part->count; at += TILE) {
        const uint64_t count = part->count - at < TILE ? part->count - at : TILE;
        dequantize_row(part->src_type, part->src + at * src_bytes, values, count);
        if (part->via_f16) {
            quantize_row_f16(values, halves, count);
            dequantize_row_f16(halves, values, count);
        }
        part->finite &= quantize_row(part->dst_type, values, part->dst + row_bytes(part->dst_type, at), count);
    }
    return nullptr;
}

bool is_float_type(int32_t type) {
    return type == kF32 || type == kF16 || type == kBF16;
}

}  // namespace
}  // namespace rwkvflow

using namespace rwkvflow;

extern "C" {

RWKV_API uint64_t rwkvflow_row_bytes(int32_t type, uint64_t cols) {
    return row_bytes(type, cols);
}

// Status: 0, or 1 when all is written and a value (of a block: its scale) is an infinity or NaN, -1 for a type that cannot
// be read or written, -2 for sizes or pointers that make no sense.
RWKV_API int32_t rwkvflow_encode(int32_t src_type, int32_t dst_type, int32_t via_f16, const void *src, void *dst,
                                 uint64_t rows, uint64_t cols, uint32_t threads) {
    if (!is_float_type(src_type) || block_length(dst_type) == 0) return -1;
    if (cols % block_length(dst_type) != 0) return -2;
    if (cols != 0 && rows > UINT64_MAX / 8 / cols) return -2;
    const uint64_t total = rows * cols;
    if (total == 0) return 0;
    if (src == nullptr || dst == nullptr) return -2;

    // No block spans rows, so the split may be anywhere between tiles and the bytes do not depend on it.
    uint64_t parts = threads == 0 ? 1 : threads;
    if (parts > MOST_THREADS) parts = MOST_THREADS;
    if (parts > (total + WORTH_A_THREAD - 1) / WORTH_A_THREAD) parts = (total + WORTH_A_THREAD - 1) / WORTH_A_THREAD;
    const uint64_t tiles = (total + TILE - 1) / TILE;
    const uint64_t share = (tiles + parts - 1) / parts * TILE;

    Part work[MOST_THREADS];
    pthread_t thread[MOST_THREADS];
    bool started[MOST_THREADS];
    for (uint64_t i = 0; i < parts; i++) {
        const uint64_t begin = i * share < total ? i * share : total;
        const uint64_t count = total - begin < share ? total - begin : share;
        work[i] = {src_type,
                   dst_type,
                   via_f16 != 0,
                   (const uint8_t *)src + begin * block_bytes(src_type),
                   (uint8_t *)dst + row_bytes(dst_type, begin),
                   count,
                   true};
    }
    for (uint64_t i = 1; i < parts; i++) started[i] = pthread_create(&thread[i], nullptr, encode_part, &work[i]) == 0;
    encode_part(&work[0]);
    bool finite = work[0].finite;
    for (uint64_t i = 1; i < parts; i++) {
        if (started[i]) {
            pthread_join(thread[i], nullptr);
        } else {
            encode_part(&work[i]);
        }
        finite &= work[i].finite;
    }
    return finite ? 0 : 1;
}

// How many of `count` values of F32, F16 or BF16 are infinite or NaN; 0 for another type.
RWKV_API uint64_t rwkvflow_count_not_finite(int32_t src_type, const void *src, uint64_t count) {
    uint64_t found = 0;
    if (src_type == kF32) {
        const uint32_t *bits = (const uint32_t *)src;
        for (uint64_t i = 0; i < count; i++) found += (bits[i] & 0x7f800000u) == 0x7f800000u;
    } else if (src_type == kF16 || src_type == kBF16) {
        const uint16_t mask = src_type == kF16 ? 0x7c00u : 0x7f80u;
        const uint16_t *bits = (const uint16_t *)src;
        for (uint64_t i = 0; i < count; i++) found += (bits[i] & mask) == mask;
    }
    return found;
}

}  // extern "C"

// Layout of the quantized blocks for the kernels (blocks.h is not for files with flags of their own; see kernels.h).
#pragma once

namespace rwkvflow {
namespace {

enum { kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 7, kQ5_1 = 8, kQ8_0 = 9 };

// Offsets in bytes of the fifth bits and of the rest; `offset` is what is taken off each weight.
template <int TYPE>
struct Block {
    static constexpr bool min = TYPE == kQ4_1 || TYPE == kQ5_1;
    static constexpr bool five = TYPE == kQ5_0 || TYPE == kQ5_1;
    static constexpr int high = min ? 4 : 2;
    static constexpr int quants = high + (five ? 4 : 0);
    static constexpr int bytes = quants + (TYPE == kQ8_0 ? 32 : 16);
    static constexpr int offset = min || TYPE == kQ8_0 ? 0 : five ? 16 : 8;
};

}  // namespace
}  // namespace rwkvflow

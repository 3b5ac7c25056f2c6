// Layout of the quantized blocks for the kernels (quantize/blocks.h is not for files with flags of their own; see
// kernels.h).
#pragma once

#include "base/types.h"

namespace rwkvflow {
namespace {

// Offsets in bytes of the fifth bits and of the rest; `offset` is what is taken off each weight. `super`: super-blocks
// of 256 weights, where scales and minima come with every 32, or in Q6_K (`six`) factors with every 16.
template <int TYPE>
struct Packed {
    static constexpr bool six = TYPE == kQ6_K;
    static constexpr bool super = TYPE == kQ4_K || TYPE == kQ5_K || six;
    static constexpr bool min = TYPE == kQ4_1 || TYPE == kQ5_1 || TYPE == kQ4_K || TYPE == kQ5_K;
    static constexpr bool five = TYPE == kQ5_0 || TYPE == kQ5_1 || TYPE == kQ5_K;
    static constexpr int high = six ? 128 : super ? 16 : min ? 4 : 2;  // of Q6_K the fifth and sixth bits
    static constexpr int factors = 192, scale = six ? 208 : 0;         // the former of Q6_K alone
    static constexpr int quants = six ? 0 : high + (five ? (super ? 32 : 4) : 0);
    static constexpr int bytes = six ? 210 : quants + (super ? 128 : TYPE == kQ8_0 ? 32 : 16);
    static constexpr int offset = min || TYPE == kQ8_0 ? 0 : six ? 32 : five ? 16 : 8;
};

}  // namespace
}  // namespace rwkvflow

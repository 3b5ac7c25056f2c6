// Layout of the quantized blocks for the kernels (quantize/blocks.h is not for files with flags of their own; see
// kernels.h).
#pragma once

#include "base/types.h"

namespace rwkvflow {
namespace {

// The values of the IQ4 types.
constexpr int8_t kCurveValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// Rows of the types that are none of Packed's, as other_blocks.inc unpacks them: signed bytes, with a whole factor for
// every 16 of them; the latter with minima.
enum : int { kSixteens = 1000, kSixteensMin = 1001 };

// Offsets in bytes of the fifth bits and of the rest; `offset` is what is taken off each weight. `super`: super-blocks
// of 256 weights, where scales and minima come with every 32, or in Q6_K (`six`) factors with every 16.
template <int TYPE>
struct Packed {
    static constexpr bool six = TYPE == kQ6_K;
    static constexpr bool sixteens = TYPE == kSixteens || TYPE == kSixteensMin;
    static constexpr bool bytes_as_they_are = TYPE == kQ8_0 || sixteens;
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

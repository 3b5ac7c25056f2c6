// The importance of a matrix's columns: sums of their squared inputs over tokens, as quantizers weigh errors by.
//
// Column by column, token after token, in double: so neither the number of threads nor how a sequence is cut into
// blocks reaches a sum. The inputs themselves are computed with the generic kernels, whose arithmetic is the same
// everywhere (api/api.cc); those of instruction sets that fuse products would differ in the last bits.
#pragma once

#include "model/model.h"

namespace rwkvflow {

struct Gathered {
    const char *name;  // of a layer's matrix, without "blocks.N."
    Matrix Layer::*matrix;
};
inline constexpr Gathered kGathered[] = {
    {"att.receptance.weight", &Layer::r}, {"att.key.weight", &Layer::k},
    {"att.value.weight", &Layer::v},      {"att.gate.weight", &Layer::g},
    {"att.output.weight", &Layer::o},     {"ffn.key.weight", &Layer::ffn_k},
    {"ffn.value.weight", &Layer::ffn_v},  {"ffn.receptance.weight", &Layer::ffn_r},
};

// Columns of all of them in one layer, which are as many in every layer. An absent matrix has none.
inline uint64_t gathered_columns(const Layer &layer) {
    uint64_t all = 0;
    for (const Gathered &each : kGathered) all += (layer.*each.matrix).cols;
    return all;
}

}  // namespace rwkvflow

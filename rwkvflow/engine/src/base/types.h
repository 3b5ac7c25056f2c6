// Numbers of the types of weights, as they stand in files.
//
// Files with flags of their own (see kernels/common/kernels.h) include this, too: no functions here.
#pragma once

#include <stdint.h>

#include "rwkvflow.h"

namespace rwkvflow {

// Numbers as rwkv.cpp writes them; of those that its files do not have (BF16, the IQ types) as ggml does.
enum Type : int32_t {
    kF32 = RWKVFLOW_F32,
    kF16 = RWKVFLOW_F16,
    kQ4_0 = RWKVFLOW_Q4_0,
    kQ4_1 = RWKVFLOW_Q4_1,
    kQ5_0 = RWKVFLOW_Q5_0,
    kQ5_1 = RWKVFLOW_Q5_1,
    kQ8_0 = RWKVFLOW_Q8_0,
    kQ2_K = RWKVFLOW_Q2_K,
    kQ3_K = RWKVFLOW_Q3_K,
    kQ4_K = RWKVFLOW_Q4_K,
    kQ5_K = RWKVFLOW_Q5_K,
    kQ6_K = RWKVFLOW_Q6_K,
    kIQ3_XXS = RWKVFLOW_IQ3_XXS,
    kIQ4_NL = RWKVFLOW_IQ4_NL,
    kIQ3_S = RWKVFLOW_IQ3_S,
    kIQ4_XS = RWKVFLOW_IQ4_XS,
    kBF16 = RWKVFLOW_BF16,
};

}  // namespace rwkvflow

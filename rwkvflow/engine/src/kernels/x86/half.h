// Half precision with F16C, for avx2.cc and avx512.cc.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace rwkvflow {
namespace {

inline float half_scale(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

}  // namespace
}  // namespace rwkvflow

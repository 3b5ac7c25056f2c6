// The quantizers of quantize.cc in 512-bit registers: half a block each. The same steps, so the same bytes; what the
// instructions do otherwise (NaN to and from halves) is left to the code there.
//
// Included by quantize.cc, whose helpers it uses. Functions carry their instruction set themselves, so the file needs
// no flags of its own.
#pragma once

// GCC's own intrinsics begin with registers of any content (__m512 y = y).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

namespace rwkvflow {
namespace {

#define AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define INLINE512 inline __attribute__((always_inline, target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))

bool detect_avx512() {
    uint32_t a, b, c, d;
    if (!have_avx2() || !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return false;
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0xe6u) != 0xe6u) return false;  // the system saves ZMM and mask registers, too
    const uint32_t wanted = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & wanted) == wanted;
}

bool have_avx512() {
    static int known = 0;  // as in have_avx2
    int state = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (state == 0) {
        state = detect_avx512() ? 2 : 1;
        __atomic_store_n(&known, state, __ATOMIC_RELAXED);
    }
    return state == 2;
}

struct Halves512 {
    __m512 low, high;  // weights 0 .. 15 and 16 .. 31
};

INLINE512 Halves512 load512(const float *x) {
    return {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
}

INLINE512 __m512i magnitude512(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int32_t)ABS));
}

INLINE512 uint32_t largest_abs512(Halves512 x) {
    return (uint32_t)_mm512_reduce_max_epi32(_mm512_max_epi32(magnitude512(x.low), magnitude512(x.high)));
}

INLINE512 uint32_t sign_of_first512(Halves512 x, uint32_t magnitude) {
    const __m512i wanted = _mm512_set1_epi32((int32_t)magnitude);
    const uint32_t equal = (uint32_t)_mm512_cmpeq_epi32_mask(magnitude512(x.low), wanted) |
                           (uint32_t)_mm512_cmpeq_epi32_mask(magnitude512(x.high), wanted) << 16;
    const uint32_t negative = (uint32_t)_mm512_movepi32_mask(_mm512_castps_si512(x.low)) |
                              (uint32_t)_mm512_movepi32_mask(_mm512_castps_si512(x.high)) << 16;
    return (negative & equal & (0u - equal)) != 0 ? 0x80000000u : 0;
}

INLINE512 float extreme512(Halves512 x) {
    const uint32_t magnitude = largest_abs512(x);
    return bits_float(magnitude | sign_of_first512(x, magnitude));
}

INLINE512 __m512i ordered512(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32((int32_t)ABS)));
}

INLINE512 void range512(Halves512 x, float *min, float *max) {
    const __m512i low = ordered512(x.low), high = ordered512(x.high);
    uint32_t bits = (uint32_t)ordered((uint32_t)_mm512_reduce_min_epi32(_mm512_min_epi32(low, high)));
    if ((bits & ABS) == 0) bits = sign_of_first512(x, 0);
    *min = bits_float(bits);
    *max = bits_float((uint32_t)ordered((uint32_t)_mm512_reduce_max_epi32(_mm512_max_epi32(low, high))));
}

// Low bytes of the integers. What does not fit in 32 bits becomes 0x80000000, whose low byte is the 0 that is wanted.
INLINE512 __m256i bytes512(__m512 low, __m512 high) {
    const __m128i first = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(low));
    return _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvttps_epi32(high)), first);
}

// (x - min) * scale + add; without a minimum, which is not the same as one of 0 where x is -0, x * scale + add.
INLINE512 __m256i scaled512(Halves512 x, float scale, float add) {
    const __m512 s = _mm512_set1_ps(scale), a = _mm512_set1_ps(add);
    return bytes512(_mm512_add_ps(_mm512_mul_ps(x.low, s), a), _mm512_add_ps(_mm512_mul_ps(x.high, s), a));
}

INLINE512 __m256i scaled512(Halves512 x, float min, float scale, float add) {
    const __m512 m = _mm512_set1_ps(min);
    return scaled512({_mm512_sub_ps(x.low, m), _mm512_sub_ps(x.high, m)}, scale, add);
}

INLINE512 void pack_nibbles512(__m256i q, uint8_t *qs) {
    const __m128i nibble = _mm_set1_epi8(0xf);
    const __m128i low = _mm_and_si128(_mm256_castsi256_si128(q), nibble);
    const __m128i high = _mm_and_si128(_mm256_extracti128_si256(q, 1), nibble);
    _mm_storeu_si128((__m128i *)qs, _mm_or_si128(low, _mm_slli_epi16(high, 4)));
}

INLINE512 void pack_fifth_bits512(__m256i q, uint8_t *qh) {
    const uint32_t high = (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(q, 3));
    memcpy(qh, &high, sizeof high);
}

INLINE512 bool write512(const float *from, BlockQ4_0 *y) {
    const Halves512 x = load512(from);
    const float d = extreme512(x) / -8.0f;
    y->d = float_to_half(d);
    pack_nibbles512(_mm256_min_epi8(scaled512(x, reciprocal(d), 8.5f), _mm256_set1_epi8(15)), y->qs);
    return half_is_finite(y->d);
}

INLINE512 bool write512(const float *from, BlockQ4_1 *y) {
    const Halves512 x = load512(from);
    float min, max;
    range512(x, &min, &max);
    const float d = (max - min) / 15.0f;
    y->d = float_to_half(d);
    y->m = float_to_half(min);
    pack_nibbles512(_mm256_min_epi8(scaled512(x, min, reciprocal(d), 0.5f), _mm256_set1_epi8(15)), y->qs);
    return half_is_finite(y->d) && half_is_finite(y->m);
}

INLINE512 bool write512(const float *from, BlockQ5_0 *y) {
    const Halves512 x = load512(from);
    const float d = extreme512(x) / -16.0f;
    const __m256i q = _mm256_min_epi8(scaled512(x, reciprocal(d), 16.5f), _mm256_set1_epi8(31));
    y->d = float_to_half(d);
    pack_fifth_bits512(q, y->qh);
    pack_nibbles512(q, y->qs);
    return half_is_finite(y->d);
}

INLINE512 bool write512(const float *from, BlockQ5_1 *y) {
    const Halves512 x = load512(from);
    float min, max;
    range512(x, &min, &max);
    const float d = (max - min) / 31.0f;
    const __m256i q = scaled512(x, min, reciprocal(d), 0.5f);
    y->d = float_to_half(d);
    y->m = float_to_half(min);
    pack_fifth_bits512(q, y->qh);
    pack_nibbles512(q, y->qs);
    return half_is_finite(y->d) && half_is_finite(y->m);
}

// To nearest, halves away from zero; see CodecQ8_0.
INLINE512 __m128i rounded512(__m512 x, __m512 scale) {
    const __m512 product = _mm512_mul_ps(x, scale);
    const __mmask16 fits = _mm512_cmplt_epi32_mask(magnitude512(product), _mm512_set1_epi32(0x4f000000));
    const __m512 t = _mm512_maskz_mov_ps(fits, product);
    const __m512i whole = _mm512_cvttps_epi32(t), one = _mm512_set1_epi32(1);
    const __m512 rest = _mm512_sub_ps(t, _mm512_cvtepi32_ps(whole));
    const __mmask16 up = _mm512_cmp_ps_mask(rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ);
    const __mmask16 down = _mm512_cmp_ps_mask(rest, _mm512_set1_ps(-0.5f), _CMP_LE_OQ);
    return _mm512_cvtepi32_epi8(
        _mm512_mask_sub_epi32(_mm512_mask_add_epi32(whole, up, whole, one), down, whole, one));
}

INLINE512 bool write512(const float *from, BlockQ8_0 *y) {
    const Halves512 x = load512(from);
    const float d = bits_float(largest_abs512(x)) / 127.0f;
    const __m512 scale = _mm512_set1_ps(reciprocal(d));
    _mm_storeu_si128((__m128i *)y->qs, rounded512(x.low, scale));
    _mm_storeu_si128((__m128i *)(y->qs + 16), rounded512(x.high, scale));
    y->d = float_to_half(d);
    return half_is_finite(y->d);
}

template <class Block>
INLINE512 bool write_blocks512(const float *src, void *dst, uint64_t count) {
    Block *blocks = (Block *)dst;
    bool finite = true;
    for (uint64_t i = 0; i < count / BLOCK; i++) finite &= write512(src + i * BLOCK, blocks + i);
    return finite;
}

INLINE512 bool write_halves512(const float *src, void *dst, uint64_t count) {
    uint8_t *out = (uint8_t *)dst;
    bool finite = true;
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512 x = _mm512_loadu_ps(src + i);
        const __m256i halves = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m256i top = _mm256_set1_epi16(0x7c00);
        if (_mm256_cmpeq_epi16_mask(_mm256_and_si256(halves, top), top) == 0) {
            _mm256_storeu_si256((__m256i *)(out + 2 * i), halves);
        } else {
            finite &= write_halves(src + i, out + 2 * i, 16);
        }
    }
    return write_halves(src + i, out + 2 * i, count - i) && finite;
}

INLINE512 void read_halves512(const void *src, float *dst, uint64_t count) {
    const uint8_t *in = (const uint8_t *)src;
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i halves = _mm256_loadu_si256((const __m256i *)(in + 2 * i));
        const __m256i top = _mm256_set1_epi16(0x7c00);
        if (_mm256_cmpeq_epi16_mask(_mm256_and_si256(halves, top), top) == 0) {
            _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(halves));
        } else {
            read_halves(in + 2 * i, dst + i, 16);
        }
    }
    read_halves(in + 2 * i, dst + i, count - i);
}

INLINE512 void read_bfloats512(const void *src, float *dst, uint64_t count) {
    const uint8_t *in = (const uint8_t *)src;
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + 2 * i)));
        _mm512_storeu_si512(dst + i, _mm512_slli_epi32(wide, 16));
    }
    read_bfloats(in + 2 * i, dst + i, count - i);
}

}  // namespace
}  // namespace rwkvflow

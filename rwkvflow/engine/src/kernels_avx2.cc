// Kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "kernels_math.h"
#include "kernels_types.h"

#define RWKV_HAS_HALF
#define RWKV_HAS_FUSED
#define RWKV_HAS_BLOCKS
#include "kernels_x86.h"

namespace rwkvflow {
namespace {

inline V16 load_half16(const uint8_t *at) {
    const __m256 parts[2] = {
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at))),
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at + 16))),
    };
    V16 out;
    memcpy(&out, parts, sizeof out);
    return out;
}

inline V8 fused(V8 a, V8 b, V8 c) {
    return reinterpret_cast<V8>(
        _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
}
inline V16 fused(V16 a, V16 b, V16 c) {
    V8 parts[3][2];
    memcpy(parts[0], &a, sizeof a);
    memcpy(parts[1], &b, sizeof b);
    memcpy(parts[2], &c, sizeof c);
    const V8 sums[2] = {fused(parts[0][0], parts[1][0], parts[2][0]), fused(parts[0][1], parts[1][1], parts[2][1])};
    V16 out;
    memcpy(&out, sums, sizeof out);
    return out;
}

// 32 weights of a block as unsigned bytes; signed ones of Q8_0.
template <int TYPE>
inline __m256i load_bytes(const uint8_t *block) {
    using B = Block<TYPE>;
    if constexpr (TYPE == kQ8_0) return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block + 2));
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block + B::quants));
    __m256i w = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(15));
    if constexpr (B::five) {
        int32_t bits;
        memcpy(&bits, block + B::high, 4);
        // Byte i of the register gets byte i / 8 of the bits; then its own bit of it decides.
        const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
        const __m256i own = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own), own);
        w = _mm256_or_si256(w, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
    return w;
}

// Pairs of products fit 16 bits: at most 2 * 128 * 127.
inline __m256i sums_of_four(__m256i is_unsigned, __m256i is_signed) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(is_unsigned, is_signed), _mm256_set1_epi16(1));
}
inline I8 signed_sums(__m256i w, __m256i x) {
    return reinterpret_cast<I8>(sums_of_four(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
}
inline __m256i load_inputs(const int8_t *q) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(q)); }

template <int TYPE>
inline void unpack_block(const uint8_t *block, int8_t out[32]) {
    const __m256i w = _mm256_sub_epi8(load_bytes<TYPE>(block), _mm256_set1_epi8(Block<TYPE>::offset));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), w);
}
inline I8 byte_sums(const int8_t *w, const int8_t *q) { return signed_sums(load_inputs(w), load_inputs(q)); }
template <int TYPE>
inline I8 block_sums(const uint8_t *block, const int8_t *q) {
    const __m256i x = load_inputs(q), w = load_bytes<TYPE>(block);
    if constexpr (Block<TYPE>::min) return reinterpret_cast<I8>(sums_of_four(w, x));
    else return signed_sums(_mm256_sub_epi8(w, _mm256_set1_epi8(Block<TYPE>::offset)), x);
}

}  // namespace
}  // namespace rwkvflow

#define RWKV_KERNELS_TABLE kKernelsAvx2
#define RWKV_KERNELS_NAME "avx2"
#include "kernels_body.h"
#endif

// Kernels for x86-64 with AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later), and the table of those that have
// AMX besides (amx.h).
#if defined(__x86_64__) || defined(_M_X64)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header, of registers that are undefined on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "kernels/common/math.h"

#define RWKV_HAS_HALF
#define RWKV_HAS_FUSED
#define RWKV_HAS_QUANTIZE
#define RWKV_HAS_SIX
#define RWKV_HAS_OTHERS
#define RWKV_HAS_SUM4
#define RWKV_HAS_IN_REGISTER
#define RWKV_QUANTIZED_KERNELS "kernels/x86/avx512_blocks.inc"
#define RWKV_FLOAT_CHAINS 12
#define RWKV_TILE_ROWS 4
#define RWKV_TILE_TOKENS 6
#define RWKV_SHORT_ROWS 192  // columns
#define RWKV_STATE_PARTS 4
#include "kernels/x86/half.h"
#include "kernels/x86/unpack.h"

namespace rwkvflow {
namespace {

inline V16 load_half16(const uint8_t *at) {
    return reinterpret_cast<V16>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at))));
}

inline V16 fused(V16 a, V16 b, V16 c) {
    return reinterpret_cast<V16>(
        _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}

// A number in all lanes that is used often: the compiler would load it again for each use, and there are no more loads
// than products a cycle.
inline V16 in_register(V16 x) {
    __asm__("" : "+v"(x));
    return x;
}

// Quarters of two registers side by side and added, twice; then the same within quarters.
inline void sum4(const V16 v[4], float out[4]) {
    __m512 a, b, c, d;
    memcpy(&a, v, sizeof a);
    memcpy(&b, v + 1, sizeof b);
    memcpy(&c, v + 2, sizeof c);
    memcpy(&d, v + 3, sizeof d);
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
}

}  // namespace
}  // namespace rwkvflow

#define RWKV_KERNELS_TABLE kKernelsAvx512
#define RWKV_KERNELS_NAME "avx512"
#include "kernels/common/body.inc"
#include "kernels/x86/amx.h"

namespace rwkvflow {
// Constant: at the start of a program none of these instructions may run.
constexpr Kernels kKernelsAmx = [] {
    Kernels out = kKernelsAvx512;
    out.name = "amx";
    out.matmul = amx_matmul;
    out.quantize = amx_quantize;
    out.most_products = amx_most_products;
    return out;
}();
}  // namespace rwkvflow
#endif

// Kernels for x86-64 with AVX-VNNI besides AVX2: processors with its dot products but without AVX-512 (Alder Lake and
// later).
#if defined(__x86_64__) || defined(_M_X64)
#define RWKV_KERNELS_TABLE kKernelsAvxVnni
#define RWKV_KERNELS_NAME "avxvnni"
#define RWKV_AVX_VNNI
#include "kernels/x86/avx2.inc"

#include "kernels/common/body.inc"
#endif

// Kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
#if defined(__x86_64__) || defined(_M_X64)
#define RWKV_KERNELS_TABLE kKernelsAvx2
#define RWKV_KERNELS_NAME "avx2"
#include "kernels/x86/avx2.inc"

#include "kernels/common/body.inc"
#endif

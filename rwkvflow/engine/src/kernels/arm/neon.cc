// Kernels for 64-bit ARM with the dot product instructions (Armv8.2 and later).
#if defined(__aarch64__)
#define RWKV_KERNELS_TABLE kKernelsNeon
#define RWKV_KERNELS_NAME "neon"
#include "kernels/arm/neon.inc"

#include "kernels/common/body.inc"
#endif

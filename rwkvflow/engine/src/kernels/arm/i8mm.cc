// Kernels for 64-bit ARM with the matrix products of bytes, besides dot products (Armv8.6: Neoverse V1 and N2, Apple
// M2, and later).
#if defined(__aarch64__)
#define RWKV_KERNELS_TABLE kKernelsNeonI8mm
#define RWKV_KERNELS_NAME "i8mm"
#define RWKV_NEON_I8MM
#include "kernels/arm/neon.inc"

#include "kernels/common/body.inc"
#endif

// Kernels for any processor: what the compiler makes of the portable body at the target's baseline.
#define RWKV_KERNELS_TABLE kKernelsGeneric
#define RWKV_KERNELS_NAME "generic"
#include "kernels/common/body.inc"

// Every set of kernels there is: the one list of them. A new set has a line here, a file with its table, that file's
// flags in CMakeLists.txt, and in cpu.cc a function that tells whether it runs. `rwkv info` prints the list, for
// whoever wants it.
//
// X(name, Table, LABEL): its name in RWKV_KERNELS and elsewhere; kKernels##Table is its table; LABEL=0 or 1 stands in
// rwkv_get_system_info_string. Of each architecture the better sets come later.
#pragma once

// clang-format off
#define RWKV_SETS_OF_ALL(X) \
    X(generic, Generic, "GENERIC")

#define RWKV_SETS_OF_X86(X) \
    X(avx2, Avx2, "AVX2") \
    X(avxvnni, AvxVnni, "AVX_VNNI") \
    X(avx512, Avx512, "AVX512") \
    X(amx, Amx, "AMX")

#define RWKV_SETS_OF_ARM(X) \
    X(neon, Neon, "NEON") \
    X(i8mm, NeonI8mm, "I8MM")
// clang-format on

// Those that are in this build, and those that are not.
#if defined(__x86_64__) || defined(_M_X64)
#define RWKV_SETS_HERE(X) RWKV_SETS_OF_ALL(X) RWKV_SETS_OF_X86(X)
#define RWKV_SETS_ELSEWHERE(X) RWKV_SETS_OF_ARM(X)
#elif defined(__aarch64__)
#define RWKV_SETS_HERE(X) RWKV_SETS_OF_ALL(X) RWKV_SETS_OF_ARM(X)
#define RWKV_SETS_ELSEWHERE(X) RWKV_SETS_OF_X86(X)
#else
#define RWKV_SETS_HERE(X) RWKV_SETS_OF_ALL(X)
#define RWKV_SETS_ELSEWHERE(X) RWKV_SETS_OF_X86(X) RWKV_SETS_OF_ARM(X)
#endif

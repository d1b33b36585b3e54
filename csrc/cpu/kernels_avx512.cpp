// x86-64 with AVX-512 (F, BW, DQ, VL): 64-byte vectors.
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "instruction_set.h"

#define MTLKERNELS_SET avx512
#define MTLKERNELS_SET_NAME "avx512"
#define MTLKERNELS_SET_FUNCTION avx512_kernels
#define MTLKERNELS_VECTOR_BYTES 64
#define MTLKERNELS_X86_LEVEL 512

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#include "instruction_set.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// x86-64 with AVX2, FMA and F16C: 32-byte vectors.
#if defined(__x86_64__)
#include "instruction_set.h"

#define MTLKERNELS_SET avx2
#define MTLKERNELS_SET_NAME "avx2"
#define MTLKERNELS_SET_FUNCTION avx2_kernels
#define MTLKERNELS_VECTOR_BYTES 32
#define MTLKERNELS_X86_LEVEL 2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "instruction_set.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

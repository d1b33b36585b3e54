// Every processor: 16-byte vectors (SSE2, NEON).
#include "instruction_set.h"

#define MTLKERNELS_SET baseline
#define MTLKERNELS_SET_NAME "baseline"
#define MTLKERNELS_SET_FUNCTION baseline_kernels
#define MTLKERNELS_VECTOR_BYTES 16
#define MTLKERNELS_X86_LEVEL 0

#include "instruction_set.inl"

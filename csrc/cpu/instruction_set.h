// What every instruction set's file includes before it narrows the target: headers must be compiled for the baseline,
// or their inline functions could be linked into code that runs on a processor without that set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/philox.h"
#include "../common/plan.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MTLKERNELS_INLINE inline __attribute__((always_inline))
#define MTLKERNELS_NOINLINE __attribute__((noinline))

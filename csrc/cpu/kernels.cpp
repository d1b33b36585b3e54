#include "kernels.h"

#include <cstdlib>
#include <string_view>

#include "../plan.h"

namespace mtlkernels::cpu {

int64_t gram_scratch_bytes(int64_t tasks) {
  constexpr int64_t kStageBytes = 4160;  // kStageStride of simd.inl
  constexpr int64_t kLaneBytes = 64;    // the widest vector
  return tasks * (kStageBytes + static_cast<int64_t>(sizeof(void*))) + num_pairs(tasks) * kLaneBytes;
}

namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = capability ? capability : "avx512";
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (limit != "default") {
    if (avx512 && limit != "avx2") return avx512_kernels();
    if (avx2) return avx2_kernels();
  }
#endif
  return baseline_kernels();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace mtlkernels::cpu

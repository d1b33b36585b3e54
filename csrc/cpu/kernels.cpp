#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "../common/plan.h"

namespace mtlkernels::cpu {

int64_t gram_scratch_bytes(int64_t tasks) {
  constexpr int64_t kStageBytes = 4160;  // kStageStride of simd.inl
  constexpr int64_t kLaneBytes = 64;     // the widest vector
  return tasks * (kStageBytes + static_cast<int64_t>(sizeof(void*))) + num_pairs(tasks) * kLaneBytes;
}

int64_t trimmed_scratch_bytes(int64_t tasks) {
  constexpr int64_t kColumns = 256;  // kTrimColumns of trimmed.inl
  return tasks * kColumns * static_cast<int64_t>(sizeof(double));
}

std::vector<const Kernels*> found_kernels() {
  std::vector<const Kernels*> found = {&baseline_kernels()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(&avx2_kernels());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      found.push_back(&avx512_kernels());
  }
#endif
  return found;
}

namespace {

const Kernels& choose() {
  const std::vector<const Kernels*> found = found_kernels();
  const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = capability ? capability : "";
  const size_t most = limit == "default" ? 1 : limit == "avx2" ? 2 : found.size();
  return *found[std::min(most, found.size()) - 1];
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace mtlkernels::cpu

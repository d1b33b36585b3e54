// The element types a gradient may have.
#pragma once

#include <cstdint>

namespace mtlkernels {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
constexpr int kNumDTypes = 4;

constexpr int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace mtlkernels

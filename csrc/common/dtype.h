// The element types a gradient may have.
#pragma once

#include <cstdint>

namespace mtlkernels {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
constexpr int kNumDTypes = 4;

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Whether a float32 accumulation should not take that factor: as a float it is infinite or has lost bits, or is near to
// it. False for zero, which is exact, and for NaN, which stays one.
constexpr bool outside_float(double factor) {
  const double size = factor < 0 ? -factor : factor;
  return size > 1e30 || (size > 0 && size < 1e-30);
}

}  // namespace mtlkernels

// What the registrations over gradient lists on CUDA share: the element type, and the number of tasks.
#pragma once

#include "../cuda/table.cuh"
#include "device.cuh"
#include "gradient_list.h"

namespace mtlkernels::ops {

// Calls body with a value of the element type.
template <class Body>
void with_element(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32: return body(float{});
    case DType::kFloat64: return body(double{});
    case DType::kBFloat16: return body(cuda::BFloat16{});
    case DType::kFloat16: return body(cuda::Float16{});
  }
}

inline void check_tasks(int64_t tasks) {
  check(tasks <= cuda::kMaxListTasks, "the CUDA kernels take at most ", cuda::kMaxListTasks, " tasks, got ", tasks,
        ": pass fewer, or set MTLKERNELS_BACKEND=reference before the import");
}

}  // namespace mtlkernels::ops

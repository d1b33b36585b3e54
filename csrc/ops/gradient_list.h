// A task-major list of T * P gradients, unpacked and checked, on any device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../dtype.h"
#include "../plan.h"
#include "arguments.h"

namespace mtlkernels::ops {

inline std::optional<DType> kernel_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: return std::nullopt;
  }
}

inline void check_not_empty(const std::vector<Tensor>& grads) {
  check(!grads.empty(), "the gradient list is empty: pass T * P tensors, task by task");
}

// Rows in place where they are contiguous, else copied once.
struct GradientList {
  int64_t tasks;
  DType dtype;
  std::vector<const void*> rows;  // T * P, null where the gradient is absent
  std::vector<int64_t> numel;     // P, 0 where every task's is absent
  std::vector<Tensor> copies;

  GradientList(const std::vector<Tensor>& grads, int64_t num_tasks) : tasks(num_tasks), rows(grads.size(), nullptr) {
    check_not_empty(grads);
    const auto count = static_cast<int64_t>(grads.size());
    check(tasks >= 1 && count % tasks == 0, "expected a task-major list of num_tasks * P gradients, got ",
          count, " gradients for ", tasks, " tasks");
    const int64_t params = count / tasks;
    const ScalarType type = grads[0].scalar_type();
    const auto known = kernel_dtype(type);
    check(known.has_value(), "gradients must be float32, float64, bfloat16 or float16");
    dtype = *known;
    numel.assign(params, 0);
    std::vector<int64_t> first(params, -1);
    for (int64_t i = 0; i < count; ++i) {
      const Tensor& grad = grads[i];
      const int64_t task = i / params, param = i % params;
      check(grad.scalar_type() == type, name(task, param),
            " has another dtype than the first of the list: call once for each dtype");
      check(same_device(grad, grads[0]), name(task, param), " is not on ",
            grads[0].is_cpu() ? "the CPU as the first of the list is" : "the device of the first of the list");
      const int64_t n = grad.numel();
      if (n == 0) continue;
      if (first[param] < 0) {
        first[param] = i;
        numel[param] = n;
      } else {
        check(same_shape(grad, grads[first[param]]), name(task, param), " has another shape than task ",
              first[param] / params, "'s");
      }
      if (grad.is_contiguous()) {
        rows[i] = grad.const_data_ptr();
      } else {
        copies.push_back(torch::stable::contiguous(grad));
        rows[i] = copies.back().const_data_ptr();
      }
    }
  }

  static std::string name(int64_t task, int64_t param) {
    return "the gradient of task " + std::to_string(task) + " for parameter " + std::to_string(param);
  }

  static bool same_shape(const Tensor& a, const Tensor& b) {
    const auto x = a.sizes(), y = b.sizes();
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
  }

  Plan plan() const { return make_plan(numel, tasks); }
};

// The number of tasks that a vector of weights is for.
inline int64_t checked_weights(const Tensor& weights, const Tensor& grad) {
  check(same_device(weights, grad), "weights must be on the gradients' device", grad.is_cpu() ? ", the CPU" : "");
  check(weights.dim() == 1 && weights.numel() >= 1, "weights must be a vector with one entry a task");
  check(weights.scalar_type() == ScalarType::Double || weights.scalar_type() == ScalarType::Float,
        "weights must be float64 or float32");
  return weights.numel();
}

// The dtype of a direction to be written: the gradients', or float32 for gradients of 16 bits.
inline DType checked_out(const Tensor& out, const Tensor& grad, DType dtype, int64_t length) {
  const bool widened = element_size(dtype) == 2 && out.scalar_type() == ScalarType::Float;
  check(same_device(out, grad) && (widened || out.scalar_type() == grad.scalar_type()),
        "out must have the gradients' device and dtype, or float32 for bfloat16 or float16 gradients");
  check(out.dim() == 1 && out.numel() == length && out.is_contiguous(), "out must be a contiguous vector of ", length,
        " elements, as combine returns it");
  return widened ? DType::kFloat32 : dtype;
}

inline void check_trim(int64_t trim, int64_t tasks) {
  check(trim >= 0 && 2 * trim < tasks, "trim = ", trim, " leaves none of ", tasks,
        " values: it must be at least 0 and below half the number of tasks");
}

// Memory for a direction as combine lays it out.
inline Tensor flat_direction(const Tensor& model, const Plan& plan) {
  const int64_t length = plan.flat_length();
  return torch::stable::new_empty(model, {&length, 1});
}

}  // namespace mtlkernels::ops

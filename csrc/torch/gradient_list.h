// A task-major list of T * P gradients, unpacked and checked, on any device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <ostream>
#include <utility>
#include <vector>

#include "../common/dtype.h"
#include "../common/plan.h"
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

// Numbers as they come over the ABI. The typed accessors compare each with every type there is, by a call each, which a
// list of many small tensors would pay for more dearly than for its arithmetic.
inline int32_t raw_dtype(const Tensor& x) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

inline int32_t raw_device_type(const Tensor& x) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
  return type;
}

// A gradient's place in the list, made into words only where a check fails.
struct GradientName {
  int64_t task, param;

  friend std::ostream& operator<<(std::ostream& out, const GradientName& name) {
    return out << "the gradient of task " << name.task << " for parameter " << name.param;
  }
};

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
    check(tasks >= 1 && count % tasks == 0, "expected a task-major list of num_tasks * P gradients, got ", count,
          " gradients for ", tasks, " tasks");
    const auto known = kernel_dtype(grads[0].scalar_type());
    check(known.has_value(), "gradients must be float32, float64, bfloat16 or float16");
    dtype = *known;
    const int64_t params = count / tasks;
    numel.assign(params, 0);
    const int32_t type = raw_dtype(grads[0]), device = raw_device_type(grads[0]);
    const bool on_cpu = grads[0].is_cpu();  // of which there is one
    const auto index = grads[0].get_device_index();
    std::vector<Present> first(params);
    for (int64_t task = 0, i = 0; task < tasks; ++task) {
      for (int64_t param = 0; param < params; ++param, ++i) {
        const Tensor& grad = grads[i];
        const GradientName name{task, param};
        check(raw_dtype(grad) == type, name, " has another dtype than the first of the list: call once for each dtype");
        check(raw_device_type(grad) == device && (on_cpu || grad.get_device_index() == index), name, " is not on ",
              on_cpu ? "the CPU as the first of the list is" : "the device of the first of the list");
        if (is_present(grad, name, first[param], numel[param])) rows[i] = pointer(grad);
      }
    }
  }

  Plan gram_plan() const { return make_plan(numel, gram_segments(tasks)); }
  Plan row_plan() const { return make_plan(numel, row_segments(tasks)); }

 private:
  using Sizes = decltype(std::declval<const Tensor&>().sizes());

  // The first task that reaches a parameter, and its gradient's shape.
  struct Present {
    int64_t task = -1;
    Sizes sizes;
  };

  static bool is_present(const Tensor& grad, const GradientName& name, Present& first, int64_t& numel) {
    const Sizes sizes = grad.sizes();
    if (first.task >= 0 && std::equal(sizes.begin(), sizes.end(), first.sizes.begin(), first.sizes.end())) return true;
    const int64_t n = grad.numel();
    if (n == 0) return false;
    check(first.task < 0, name, " has another shape than task ", first.task, "'s");
    first = {name.task, sizes};
    numel = n;
    return true;
  }

  const void* pointer(const Tensor& grad) {
    if (grad.is_contiguous()) return grad.const_data_ptr();
    copies.push_back(torch::stable::contiguous(grad));
    return copies.back().const_data_ptr();
  }
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

// The memory of a state as long as the gradients.
inline void* state_rows(const Tensor& state, const GradientList& list, const Tensor& grad, const Plan& plan) {
  const auto wide = list.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  check(same_device(state, grad) && state.scalar_type() == wide && state.dim() == 2 && state.size(0) == list.tasks &&
            state.size(1) == plan.flat_length() && state.is_contiguous(),
        "state must be a contiguous matrix of ", list.tasks, " x ", plan.flat_length(),
        " numbers, a row a task as combine "
        "lays it out, in float64 for float64 gradients and else in float32, on the gradients' device");
  return state.mutable_data_ptr();
}

inline const double* rate_pointer(const Tensor& rate, const Tensor& grad) {
  check(same_device(rate, grad) && rate.scalar_type() == ScalarType::Double && rate.numel() == 1,
        "rate must be a float64 scalar on the gradients' device");
  return static_cast<const double*>(rate.const_data_ptr());
}

// Memory for a direction as combine lays it out.
inline Tensor flat_direction(const Tensor& model, const Plan& plan) {
  const int64_t length = plan.flat_length();
  return torch::stable::new_empty(model, {&length, 1});
}

}  // namespace mtlkernels::ops

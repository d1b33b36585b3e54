// A gradient list and one number a task, unpacked from tensors and checked: what every op over lists starts with.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "../plan.h"
#include "solve.h"

namespace mtlkernels::ops_cpu {

inline std::optional<mtlkernels::cpu::DType> kernel_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return mtlkernels::cpu::DType::kFloat32;
    case ScalarType::Double: return mtlkernels::cpu::DType::kFloat64;
    case ScalarType::BFloat16: return mtlkernels::cpu::DType::kBFloat16;
    case ScalarType::Half: return mtlkernels::cpu::DType::kFloat16;
    default: return std::nullopt;
  }
}

inline std::string name(int64_t task, int64_t param) {
  return "the gradient of task " + std::to_string(task) + " for parameter " + std::to_string(param);
}

// A task-major list of T * P gradients, unpacked: rows in place where they are contiguous, else copied once.
struct GradientList {
  int64_t tasks;
  mtlkernels::cpu::DType dtype;
  std::vector<const void*> rows;  // T * P, null where the gradient is absent
  std::vector<int64_t> numel;     // P, 0 where every task's is absent
  std::vector<Tensor> copies;

  GradientList(const std::vector<Tensor>& grads, int64_t num_tasks) : tasks(num_tasks), rows(grads.size(), nullptr) {
    const auto count = static_cast<int64_t>(grads.size());
    check(tasks >= 1 && count > 0 && count % tasks == 0, "expected a task-major list of num_tasks * P gradients, got ",
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
      check(grad.is_cpu(), name(task, param), " is not on the CPU as the first of the list is");
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

  static bool same_shape(const Tensor& a, const Tensor& b) {
    const auto x = a.sizes(), y = b.sizes();
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
  }

  mtlkernels::Plan plan() const { return mtlkernels::make_plan(numel, tasks); }
};

inline constexpr auto kParallelFor = [](int64_t end, int64_t grain, const auto& body) {
  torch::stable::parallel_for(0, end, grain, body);
};

// One number a task, as float64 in contiguous memory, whatever their own dtype is.
inline std::vector<double> read_numbers(const Tensor& numbers, const char* name, int64_t& tasks) {
  check(numbers.is_cpu(), name, " must be on the gradients' device, the CPU");
  check(numbers.dim() == 1 && numbers.numel() >= 1, name, " must be a vector with one entry a task");
  tasks = numbers.numel();
  std::vector<double> values(tasks);
  const int64_t stride = numbers.stride(0);
  if (numbers.scalar_type() == ScalarType::Double) {
    const auto* data = static_cast<const double*>(numbers.const_data_ptr());
    for (int64_t t = 0; t < tasks; ++t) values[t] = data[t * stride];
  } else if (numbers.scalar_type() == ScalarType::Float) {
    const auto* data = static_cast<const float*>(numbers.const_data_ptr());
    for (int64_t t = 0; t < tasks; ++t) values[t] = data[t * stride];
  } else {
    check(false, name, " must be float64 or float32");
  }
  return values;
}

}  // namespace mtlkernels::ops_cpu

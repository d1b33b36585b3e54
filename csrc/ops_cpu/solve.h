// What the registration of every solver needs: K checked, the outputs, the memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../solvers/lanes.h"

namespace mtlkernels::ops_cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Loading this library for its solvers and facts must not take over where another backend was asked for.
inline bool another_backend_is_forced() {
  const char* forced = std::getenv("MTLKERNELS_BACKEND");
  return forced && *forced && std::string_view(forced) != "native";
}

// K checked, and the outputs and memory of one solver call.
struct Problem {
  int tasks;
  Tensor K, weights, status;
  std::vector<double> workspace;
  std::vector<int> ints;

  Problem(const Tensor& gram, int64_t doubles(int64_t), int64_t int_count(int64_t)) : tasks(checked(gram)), K(gram),
      weights(vector(ScalarType::Double)), status(vector(ScalarType::Long)), workspace(doubles(tasks)), ints(int_count(tasks)) {
    K = torch::stable::contiguous(K);
  }

  static int checked(const Tensor& gram) {
    STD_TORCH_CHECK(gram.dim() == 2 && gram.size(0) == gram.size(1) && gram.size(0) >= 1, "gram must be a square matrix");
    STD_TORCH_CHECK(gram.scalar_type() == ScalarType::Double, "gram must be float64, as ops.gram returns it");
    STD_TORCH_CHECK(gram.size(0) <= mtlkernels::kMaxTasks, "native solvers take at most ", mtlkernels::kMaxTasks, " tasks, got ", gram.size(0));
    return static_cast<int>(gram.size(0));
  }
  Tensor vector(ScalarType type) const {
    const int64_t n = tasks;
    return torch::stable::new_empty(K, {&n, 1}, type);
  }
  const double* k() const { return static_cast<const double*>(K.const_data_ptr()); }
  double* w() { return static_cast<double*>(weights.mutable_data_ptr()); }
  int64_t* s() { return static_cast<int64_t*>(status.mutable_data_ptr()); }
  std::tuple<Tensor, Tensor> answer() { return {weights, status}; }
};

// One number a task, or null where none were given.
inline const double* task_numbers(const std::optional<Tensor>& numbers, int tasks, const char* name) {
  if (!numbers) return nullptr;
  STD_TORCH_CHECK(numbers->is_cpu() && numbers->scalar_type() == ScalarType::Double && numbers->dim() == 1 &&
                      numbers->is_contiguous() && numbers->size(0) == tasks,
                  name, " must be a contiguous float64 vector (T) on gram's device");
  return static_cast<const double*>(numbers->const_data_ptr());
}

inline int64_t task_ints(int64_t tasks) { return tasks; }
inline int64_t no_doubles(int64_t) { return 0; }

}  // namespace mtlkernels::ops_cpu

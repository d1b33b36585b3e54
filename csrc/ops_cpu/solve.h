// What the registration of every solver needs: arguments checked, the outputs, the memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <vector>

#include "../solvers/lanes.h"

namespace mtlkernels::ops_cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError with the sentence alone. (STD_TORCH_CHECK puts the build machine's path before it.)
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

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
    check(gram.dim() == 2 && gram.size(0) == gram.size(1) && gram.size(0) >= 1, "gram must be a square matrix");
    check(gram.scalar_type() == ScalarType::Double, "gram must be float64, as ops.gram returns it");
    check(gram.size(0) <= mtlkernels::kMaxTasks, "native solvers take at most ", mtlkernels::kMaxTasks, " tasks, got ", gram.size(0));
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

inline uint64_t read_word(const Tensor& scalar) {
  check(scalar.is_cpu() && scalar.numel() == 1 && scalar.scalar_type() == ScalarType::Long,
                  "seed and step must be int64 scalars");
  return static_cast<uint64_t>(*static_cast<const int64_t*>(scalar.const_data_ptr()));
}

// One float64 number a task.
inline const double* task_vector(const Tensor& x, const char* name, int tasks) {
  check(x.is_cpu() && x.scalar_type() == ScalarType::Double && x.dim() == 1 && x.is_contiguous() && x.size(0) == tasks,
                  name, " must be a contiguous float64 vector of ", tasks, " numbers, one a task, on gram's device");
  return static_cast<const double*>(x.const_data_ptr());
}

// The tasks' visits of each other, (T, T - 1).
inline const int64_t* task_order(const Tensor& order, int tasks) {
  check(order.is_cpu() && order.scalar_type() == ScalarType::Long && order.dim() == 2 && order.is_contiguous() &&
                      order.size(0) == tasks && order.size(1) == tasks - 1,
                  "order must be a contiguous int64 matrix (T, T - 1) on gram's device");
  const auto* visits = static_cast<const int64_t*>(order.const_data_ptr());
  for (int64_t i = 0; i < order.numel(); ++i)
    check(visits[i] >= 0 && visits[i] < tasks, "order names task ", visits[i], " of ", tasks);
  return visits;
}

// One number a task, or null where none were given.
inline const double* task_numbers(const std::optional<Tensor>& numbers, int tasks, const char* name) {
  if (!numbers) return nullptr;
  check(numbers->is_cpu() && numbers->scalar_type() == ScalarType::Double && numbers->dim() == 1 &&
                      numbers->is_contiguous() && numbers->size(0) == tasks,
                  name, " must be a contiguous float64 vector (T) on gram's device");
  return static_cast<const double*>(numbers->const_data_ptr());
}

inline int64_t task_ints(int64_t tasks) { return tasks; }
inline int64_t no_doubles(int64_t) { return 0; }

}  // namespace mtlkernels::ops_cpu

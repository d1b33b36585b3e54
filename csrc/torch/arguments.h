// Checks of arguments that the registrations on every device share. Nothing here reads a tensor's elements.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "../linalg/screen.h"

namespace mtlkernels::ops {

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

// Loading a library for its solvers and facts must not take over where another backend was asked for.
inline bool another_backend_is_forced() {
  const char* forced = std::getenv("MTLKERNELS_BACKEND");
  return forced && *forced && std::string_view(forced) != "native";
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// The number of tasks of K.
inline int checked_tasks(const Tensor& gram) {
  check(gram.dim() == 2 && gram.size(0) == gram.size(1) && gram.size(0) >= 1, "gram must be a square matrix");
  check(gram.scalar_type() == ScalarType::Double, "gram must be float64, as ops.gram returns it");
  check(gram.size(0) <= kMaxTasks, "native solvers take at most ", kMaxTasks, " tasks, got ", gram.size(0));
  return static_cast<int>(gram.size(0));
}

// One float64 number a task. model: a tensor on the device where they have to be.
inline const double* task_vector(const Tensor& x, const char* name, int64_t tasks, const Tensor& model, const char* where) {
  check(same_device(x, model) && x.scalar_type() == ScalarType::Double && x.dim() == 1 && x.is_contiguous() &&
            x.size(0) == tasks,
        name, " must be a contiguous float64 vector of ", tasks, " numbers, one a task, on ", where, "'s device");
  return static_cast<const double*>(x.const_data_ptr());
}

inline const double* task_vector(const Tensor& x, const char* name, const Tensor& gram) {
  return task_vector(x, name, gram.size(0), gram, "gram");
}

// A number a pair of tasks.
inline const double* task_matrix(const Tensor& x, const char* name, const Tensor& gram) {
  check(same_device(x, gram) && x.scalar_type() == ScalarType::Double && x.dim() == 2 && x.is_contiguous() &&
            x.size(0) == gram.size(0) && x.size(1) == gram.size(0),
        name, " must be a contiguous float64 matrix (T, T) on gram's device");
  return static_cast<const double*>(x.const_data_ptr());
}

// The tasks' visits of each other, (T, T - 1). readable: the entries are in the host's memory, and checked.
inline const int64_t* task_order(const Tensor& order, const Tensor& gram, bool readable) {
  check(same_device(order, gram) && order.scalar_type() == ScalarType::Long && order.dim() == 2 && order.is_contiguous() &&
            order.size(0) == gram.size(0) && order.size(1) == gram.size(0) - 1,
        "order must be a contiguous int64 matrix (T, T - 1) on gram's device");
  const auto* visits = static_cast<const int64_t*>(order.const_data_ptr());
  for (int64_t i = 0; readable && i < order.numel(); ++i)
    check(visits[i] >= 0 && visits[i] < gram.size(0), "order names task ", visits[i], " of ", gram.size(0));
  return visits;
}

// model: any tensor on the device where the scalar has to be.
inline const int64_t* word_pointer(const Tensor& scalar, const Tensor& model) {
  check(same_device(scalar, model) && scalar.numel() == 1 && scalar.scalar_type() == ScalarType::Long,
        "seed and step must be int64 scalars on one device");
  return static_cast<const int64_t*>(scalar.const_data_ptr());
}

// Raises where finite numbers cannot be inner products of gradients. On a device the status says so instead.
inline void check_inner_products(const double* K, int tasks) {
  for (int i = 0; i < tasks; ++i) {
    const double square = K[i * tasks + i];
    check(!(square < 0) || std::isinf(square), "gram[", i, ", ", i, "] = ", square,
          " is negative, which no squared norm is: give the gradients' inner products, as ops.gram returns them");
    for (int j = 0; j < i; ++j)
      check(agree(K, tasks, i, j), "gram is not symmetric, gram[", j, ", ", i, "] = ", K[j * tasks + i], " but gram[", i,
            ", ", j, "] = ", K[i * tasks + j], ": give inner products of one batch, as ops.gram returns them");
  }
}

}  // namespace mtlkernels::ops

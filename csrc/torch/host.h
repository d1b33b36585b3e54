// What the registration of every solver needs: arguments checked, the outputs, the memory.
#pragma once

#include <tuple>
#include <vector>

#include "arguments.h"
#include "../linalg/screen.h"

namespace mtlkernels::ops_cpu {

using namespace mtlkernels::ops;

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

// K of one batch, or the products of two, which need not be symmetric.
enum class Batches { kOne, kTwo };

// K checked, and the outputs and memory of one solver call.
struct Problem {
  int tasks;
  Tensor K, weights, status;
  std::vector<double> workspace;
  std::vector<int> ints;

  Problem(const Tensor& gram, int64_t doubles(int64_t), int64_t int_count(int64_t), Batches batches = Batches::kOne)
      : tasks(checked_tasks(gram)), K(gram), weights(vector(ScalarType::Double)), status(vector(ScalarType::Long)),
        workspace(doubles(tasks)), ints(int_count(tasks)) {
    K = torch::stable::contiguous(K);
    if (batches == Batches::kOne) check_inner_products(k(), tasks);
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

inline uint64_t read_word(const Tensor& scalar, const Tensor& seed) {
  check(scalar.is_cpu(), "seed and step must be on the CPU here");
  return static_cast<uint64_t>(*word_pointer(scalar, seed));
}

// The tasks' visits of each other, (T, T - 1).
inline const int64_t* task_order(const Tensor& order, const Tensor& gram) {
  const int64_t* visits = order_pointer(order, gram);
  for (int64_t i = 0; i < order.numel(); ++i)
    check(visits[i] >= 0 && visits[i] < gram.size(0), "order names task ", visits[i], " of ", gram.size(0));
  return visits;
}

}  // namespace mtlkernels::ops_cpu

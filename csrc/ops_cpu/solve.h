// What the registration of every solver needs: arguments checked, the outputs, the memory.
#pragma once

#include <tuple>
#include <vector>

#include "../ops/arguments.h"

namespace mtlkernels::ops_cpu {

using namespace mtlkernels::ops;

// K checked, and the outputs and memory of one solver call.
struct Problem {
  int tasks;
  Tensor K, weights, status;
  std::vector<double> workspace;
  std::vector<int> ints;

  Problem(const Tensor& gram, int64_t doubles(int64_t), int64_t int_count(int64_t)) : tasks(checked_tasks(gram)), K(gram),
      weights(vector(ScalarType::Double)), status(vector(ScalarType::Long)), workspace(doubles(tasks)), ints(int_count(tasks)) {
    K = torch::stable::contiguous(K);
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

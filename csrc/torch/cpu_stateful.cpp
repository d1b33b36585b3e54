// Registration of the solvers with a state, and of normal numbers, on the CPU: mtlkernels/ops/stateful.py.
#include "../common/draws.h"
#include "../solvers/gradnorm.h"
#include "../solvers/gradvac.h"
#include "../solvers/simplex_descent.h"
#include "host.h"

namespace mtlkernels::ops_cpu {
namespace {

namespace mtl = mtlkernels;

std::tuple<Tensor, Tensor, Tensor> gradvac(Tensor gram, Tensor order, Tensor phi, double beta, bool corrected) {
  Problem problem(gram, mtl::gradvac_workspace, task_ints);
  const int64_t* visits = task_order(order, problem.K);
  const double* targets = task_matrix(phi, "phi", problem.K);
  Tensor next = torch::stable::empty_like(phi);
  mtl::gradvac(mtl::HostLane{}, problem.k(), visits, targets, problem.tasks,
               beta, corrected, problem.w(), problem.s(), static_cast<double*>(next.mutable_data_ptr()),
               problem.workspace.data(), problem.ints.data());
  return {problem.weights, problem.status, next};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gradnorm(Tensor gram, Tensor losses, Tensor state, Tensor start, double alpha,
                                                    double rate) {
  Problem problem(gram, task_ints, task_ints);
  const double* values = task_vector(losses, "losses", problem.K);
  const double* w = task_vector(state, "state", problem.K);
  const double* first = task_vector(start, "start", problem.K);
  Tensor next = problem.vector(ScalarType::Double), next_start = problem.vector(ScalarType::Double);
  mtl::gradnorm(mtl::HostLane{}, problem.k(), values, w, first, problem.tasks, alpha, rate, problem.w(), problem.s(),
                static_cast<double*>(next.mutable_data_ptr()), static_cast<double*>(next_start.mutable_data_ptr()),
                problem.workspace.data(), problem.ints.data());
  return {problem.weights, problem.status, next, next_start};
}

std::tuple<Tensor, Tensor, Tensor> simplex_descent(Tensor gram, Tensor state, int64_t rounds, double rate,
                                                   double momentum, double pull, double damping, bool relative) {
  Problem problem(gram, mtl::simplex_descent_workspace, task_ints, Batches::kTwo);
  const double* start = task_vector(state, "state", problem.K);
  Tensor next = problem.vector(ScalarType::Double);
  mtl::simplex_descent(mtl::HostLane{}, problem.k(), start, problem.tasks, rounds, rate, momentum, pull, damping,
                       relative, problem.w(), problem.s(), static_cast<double*>(next.mutable_data_ptr()),
                       problem.workspace.data(), problem.ints.data());
  return {problem.weights, problem.status, next};
}

Tensor normal_numbers(Tensor seed, Tensor step, int64_t n) {
  check(n >= 0, "n must not be negative");
  Tensor x = torch::stable::new_empty(seed, {&n, 1}, ScalarType::Double);
  mtl::normal_numbers(mtl::HostLane{}, read_word(seed, seed), read_word(step, seed), n, static_cast<double*>(x.mutable_data_ptr()));
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("gradvac", TORCH_BOX(&gradvac));
  m.impl("gradnorm", TORCH_BOX(&gradnorm));
  m.impl("simplex_descent", TORCH_BOX(&simplex_descent));
  m.impl("normal_numbers", TORCH_BOX(&normal_numbers));
}

}  // namespace mtlkernels::ops_cpu

// Registration of the solvers with a state, and of normal numbers, on CUDA: mtlkernels/ops/stateful.py.
#include "../common/draws.h"
#include "../solvers/gradnorm.h"
#include "../solvers/gradvac.h"
#include "../solvers/simplex_descent.h"
#include "solve.cuh"

namespace mtlkernels::ops_cuda {
namespace {

namespace mtl = mtlkernels;
using cuda::Warp;

// An order that names no task is an error that only the device can see: the weights are NaN then, phi stays.
std::tuple<Tensor, Tensor, Tensor> gradvac(Tensor gram, Tensor order, Tensor phi, double beta, bool corrected) {
  Problem problem(gram, mtl::gradvac_workspace, task_ints);
  const int64_t* visits = order_pointer(order, problem.K);
  const double* targets = task_matrix(phi, "phi", problem.K);
  Tensor next_phi = torch::stable::empty_like(phi);
  auto* next = static_cast<double*>(next_phi.mutable_data_ptr());
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  problem.run("gradvac", [=] __device__(const Warp& lanes) {
    if (cuda::names_tasks(lanes, visits, tasks)) {
      mtl::gradvac(lanes, K, visits, targets, tasks, beta, corrected, w, s, next, workspace, ints);
    } else {
      mtl::screen(lanes, K, tasks, s, ints);
      for (int i = lanes.lane; i < tasks * tasks; i += Warp::lanes) next[i] = targets[i];
      mtl::fill(lanes, w, tasks, NAN);
    }
  });
  return {problem.weights, problem.status, next_phi};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gradnorm(Tensor gram, Tensor losses, Tensor state, Tensor start, double alpha,
                                                    double rate) {
  Problem problem(gram, task_ints, task_ints);
  const double* values = task_vector(losses, "losses", problem.K);
  const double* before = task_vector(state, "state", problem.K);
  const double* first = task_vector(start, "start", problem.K);
  Tensor next_state = problem.vector(ScalarType::Double, problem.tasks);
  Tensor next_start = problem.vector(ScalarType::Double, problem.tasks);
  auto* after = static_cast<double*>(next_state.mutable_data_ptr());
  auto* kept = static_cast<double*>(next_start.mutable_data_ptr());
  const double* K = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  problem.run("gradnorm", [=] __device__(const Warp& lanes) {
    mtl::gradnorm(lanes, K, values, before, first, tasks, alpha, rate, w, s, after, kept, workspace, ints);
  });
  return {problem.weights, problem.status, next_state, next_start};
}

std::tuple<Tensor, Tensor, Tensor> simplex_descent(Tensor gram, Tensor state, int64_t rounds, double rate,
                                                   double momentum, double pull, double damping, bool relative) {
  Problem problem(gram, mtl::simplex_descent_workspace, task_ints);
  const double* before = task_vector(state, "state", problem.K);
  Tensor next_state = problem.vector(ScalarType::Double, problem.tasks);
  auto* after = static_cast<double*>(next_state.mutable_data_ptr());
  const double* A = problem.k();
  const int tasks = problem.tasks;
  double *w = problem.w(), *workspace = problem.d();
  int64_t* s = problem.s();
  int* ints = problem.i();
  problem.run("simplex_descent", [=] __device__(const Warp& lanes) {
    mtl::simplex_descent(lanes, A, before, tasks, rounds, rate, momentum, pull, damping, relative, w, s, after, workspace,
                         ints);
  });
  return {problem.weights, problem.status, next_state};
}

Tensor normal_numbers(Tensor seed, Tensor step, int64_t n) {
  check(n >= 0, "n must not be negative");
  const int64_t *key = word_pointer(seed, seed), *counter = word_pointer(step, seed);
  const OnDevice device(seed);
  Tensor numbers = torch::stable::new_empty(seed, {&n, 1}, ScalarType::Double);
  auto* x = static_cast<double*>(numbers.mutable_data_ptr());
  cuda::launch_solver(device.stream(), [=] __device__(const Warp& lanes) {
    mtl::normal_numbers(lanes, static_cast<uint64_t>(*key), static_cast<uint64_t>(*counter), n, x);
  });
  device.check_launches("normal_numbers");
  return numbers;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CUDA, m) {
  if (another_backend_is_forced()) return;
  m.impl("gradvac", TORCH_BOX(&gradvac));
  m.impl("gradnorm", TORCH_BOX(&gradnorm));
  m.impl("simplex_descent", TORCH_BOX(&simplex_descent));
  m.impl("normal_numbers", TORCH_BOX(&normal_numbers));
}

}  // namespace mtlkernels::ops_cuda

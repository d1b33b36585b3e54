// The solvers on plain arrays, for mtlkernels._C.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "solvers/aligned.h"
#include "solvers/avgnorm.h"
#include "solvers/cagrad.h"
#include "solvers/cone_projection.h"
#include "common/draws.h"
#include "solvers/gradnorm.h"
#include "solvers/gradvac.h"
#include "solvers/imgrad.h"
#include "solvers/mgda.h"
#include "solvers/equiangular.h"
#include "solvers/fair.h"
#include "solvers/pcgrad.h"
#include "solvers/simplex_descent.h"

namespace py = pybind11;
namespace mtl = mtlkernels;

namespace {

using Matrix = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Order = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// Runs solve(K, T, weights, status) on a checked (T, T) array and returns (weights, status).
template <class Solve>
py::tuple solved(const Matrix& gram, Solve&& solve) {
  if (gram.ndim() != 2 || gram.shape(0) != gram.shape(1) || gram.shape(0) < 1 || gram.shape(0) > mtl::kMaxTasks)
    throw std::invalid_argument("gram must be a square matrix of 1 to " + std::to_string(mtl::kMaxTasks) + " tasks");
  const auto tasks = static_cast<int>(gram.shape(0));
  py::array_t<double> weights(tasks);
  py::array_t<int64_t> status(tasks);
  solve(gram.data(), tasks, weights.mutable_data(), status.mutable_data());
  return py::make_tuple(weights, status);
}

void check_order(const Order& order, int tasks) {
  if (order.ndim() != 2 || order.shape(0) != tasks || order.shape(1) != tasks - 1)
    throw std::invalid_argument("order must have shape (T, T - 1)");
  for (py::ssize_t i = 0; i < order.size(); ++i)
    if (order.data()[i] < 0 || order.data()[i] >= tasks) throw std::invalid_argument("order names a task that is not there");
}

const double* task_numbers(const Matrix& x, int tasks) {
  if (x.size() != tasks) throw std::invalid_argument("expected one number a task");
  return x.data();
}

py::tuple pcgrad(const Matrix& gram, const Order& order, bool mean) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    check_order(order, tasks);
    std::vector<double> workspace(mtl::pcgrad_workspace(tasks));
    std::vector<int> active(tasks);
    mtl::pcgrad(mtl::HostLane{}, K, order.data(), tasks, mean, weights, status, workspace.data(), active.data());
  });
}

py::tuple cagrad(const Matrix& gram, double c, int64_t rescale, bool sum) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::cagrad_workspace(tasks));
    std::vector<int> ints(mtl::cagrad_ints(tasks));
    mtl::cagrad(mtl::HostLane{}, K, tasks, c, static_cast<mtl::Rescale>(rescale), sum, weights, status, workspace.data(),
                ints.data());
  });
}

py::tuple avgnorm(const Matrix& gram, int64_t scale, double constant) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::avgnorm_workspace(tasks));
    std::vector<int> active(tasks);
    mtl::avgnorm(mtl::HostLane{}, K, tasks, static_cast<mtl::NormScale>(scale), constant, weights, status,
                 workspace.data(), active.data());
  });
}

py::tuple mgda(const Matrix& gram) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::mgda_workspace(tasks));
    std::vector<int> ints(mtl::mgda_ints(tasks));
    mtl::mgda(mtl::HostLane{}, K, tasks, weights, status, workspace.data(), ints.data());
  });
}

py::tuple imgrad(const Matrix& gram, double c, int64_t form, int64_t rescale) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::cagrad_workspace(tasks));
    std::vector<int> ints(mtl::cagrad_ints(tasks));
    mtl::imgrad(mtl::HostLane{}, K, tasks, c, static_cast<mtl::IMGradForm>(form), static_cast<mtl::Rescale>(rescale),
                weights, status, workspace.data(), ints.data());
  });
}

py::tuple cone_projection(const Matrix& gram, const Matrix& preference, bool each) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    const double* shares = preference.size() ? task_numbers(preference, tasks) : nullptr;
    std::vector<double> workspace(mtl::cone_projection_workspace(tasks));
    std::vector<int> ints(mtl::cone_projection_ints(tasks));
    mtl::cone_projection(mtl::HostLane{}, K, tasks, shares, each, weights, status, workspace.data(), ints.data());
  });
}

py::tuple gradvac(const Matrix& gram, const Order& order, const Matrix& phi, double beta, bool corrected) {
  py::array_t<double> next({gram.shape(0), gram.shape(0)});
  py::tuple answer = solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    check_order(order, tasks);
    if (phi.size() != tasks * tasks) throw std::invalid_argument("phi must have shape (T, T)");
    std::vector<double> workspace(mtl::gradvac_workspace(tasks));
    std::vector<int> active(tasks);
    mtl::gradvac(mtl::HostLane{}, K, order.data(), phi.data(), tasks, beta, corrected, weights, status,
                 next.mutable_data(), workspace.data(), active.data());
  });
  return py::make_tuple(answer[0], answer[1], next);
}

py::tuple gradnorm(const Matrix& gram, const Matrix& losses, const Matrix& state, const Matrix& start, double alpha,
                   double rate) {
  py::array_t<double> next(gram.shape(0)), next_start(gram.shape(0));
  py::tuple answer = solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> ratio(tasks);
    std::vector<int> active(tasks);
    mtl::gradnorm(mtl::HostLane{}, K, task_numbers(losses, tasks), task_numbers(state, tasks), task_numbers(start, tasks),
                  tasks, alpha, rate, weights, status, next.mutable_data(), next_start.mutable_data(), ratio.data(),
                  active.data());
  });
  return py::make_tuple(answer[0], answer[1], next, next_start);
}

py::tuple simplex_descent(const Matrix& gram, const Matrix& state, int64_t rounds, double rate, double momentum,
                          double pull, double damping, bool relative) {
  py::array_t<double> next(gram.shape(0));
  py::tuple answer = solved(gram, [&](const double* A, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::simplex_descent_workspace(tasks));
    std::vector<int> active(tasks);
    mtl::simplex_descent(mtl::HostLane{}, A, task_numbers(state, tasks), tasks, rounds, rate, momentum, pull, damping,
                         relative, weights, status, next.mutable_data(), workspace.data(), active.data());
  });
  return py::make_tuple(answer[0], answer[1], next);
}

Matrix normal_numbers(int64_t seed, int64_t step, int64_t n) {
  if (n < 0) throw std::invalid_argument("n must not be negative");
  Matrix x(static_cast<py::ssize_t>(n));
  mtl::normal_numbers(mtl::HostLane{}, static_cast<uint64_t>(seed), static_cast<uint64_t>(step), n, x.mutable_data());
  return x;
}

using Numbers = std::optional<py::array_t<double, py::array::c_style | py::array::forcecast>>;

const double* task_numbers(const Numbers& numbers, int tasks) {
  if (!numbers) return nullptr;
  if (numbers->ndim() != 1 || numbers->shape(0) != tasks) throw std::invalid_argument("expected one number a task");
  return numbers->data();
}

py::tuple fairgrad(const Matrix& gram, double alpha, const Numbers& importance, double max_norm) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::fair_workspace(tasks));
    std::vector<int> ints(mtl::fair_ints(tasks));
    mtl::fair(mtl::HostLane{}, K, task_numbers(importance, tasks), tasks, alpha, max_norm, weights, status,
              workspace.data(), ints.data());
  });
}

py::tuple equiangular(const Matrix& gram, int64_t length) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::equiangular_workspace(tasks));
    std::vector<int> active(tasks);
    mtl::equiangular(mtl::HostLane{}, K, tasks, static_cast<mtl::EquiangularLength>(length), weights, status,
                     workspace.data(), active.data());
  });
}

py::tuple aligned(const Matrix& gram, const Numbers& preference, int64_t scale, bool mean) {
  return solved(gram, [&](const double* K, int tasks, double* weights, int64_t* status) {
    std::vector<double> workspace(mtl::aligned_workspace(tasks));
    std::vector<int> active(tasks);
    mtl::aligned(mtl::HostLane{}, K, task_numbers(preference, tasks), tasks, static_cast<mtl::AlignedScale>(scale), mean,
                 weights, status, workspace.data(), active.data());
  });
}

Order visiting_order(int64_t seed, int64_t step, int tasks) {
  if (tasks < 1) throw std::invalid_argument("tasks must be at least 1");
  Order order({static_cast<py::ssize_t>(tasks), static_cast<py::ssize_t>(tasks - 1)});
  mtl::visiting_order(mtl::HostLane{}, static_cast<uint64_t>(seed), static_cast<uint64_t>(step), tasks, order.mutable_data());
  return order;
}

}  // namespace

void bind_solvers(py::module_& m) {
  m.def("pcgrad", &pcgrad, py::arg("gram"), py::arg("order"), py::arg("mean") = false,
        "PCGrad on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("cagrad", &cagrad, py::arg("gram"), py::arg("c"), py::arg("rescale") = 0, py::arg("sum") = false,
        "CAGrad on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("avgnorm", &avgnorm, py::arg("gram"), py::arg("scale") = 0, py::arg("constant") = 1.0,
        "AvgNorm on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("mgda", &mgda, py::arg("gram"), "MGDA on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("imgrad", &imgrad, py::arg("gram"), py::arg("c"), py::arg("form") = 0, py::arg("rescale") = 0,
        "IMGrad on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("cone_projection", &cone_projection, py::arg("gram"), py::arg("preference"), py::arg("each"),
        "DualProj, or with each UPGrad, on a (T, T) float64 array; an empty preference is the mean: (weights, status).");
  m.def("gradvac", &gradvac, py::arg("gram"), py::arg("order"), py::arg("phi"), py::arg("beta"), py::arg("corrected") = false,
        "GradVac on a (T, T) float64 array: (weights (T), status (T), next phi (T, T)).");
  m.def("gradnorm", &gradnorm, py::arg("gram"), py::arg("losses"), py::arg("state"), py::arg("start"), py::arg("alpha"),
        py::arg("rate"), "GradNorm on a (T, T) float64 array: (weights, status, next state, next start), each (T).");
  m.def("simplex_descent", &simplex_descent, py::arg("gram"), py::arg("state"), py::arg("rounds"), py::arg("rate"),
        py::arg("momentum"), py::arg("pull"), py::arg("damping"), py::arg("relative"),
        "SDMGrad and MoDo on a (T, T) float64 array: (weights (T), status (T), next state (T)).");
  m.def("normal_numbers", &normal_numbers, py::arg("seed"), py::arg("step"), py::arg("n"),
        "Standard normal numbers of one step: (n) float64.");
  m.def("fairgrad", &fairgrad, py::arg("gram"), py::arg("alpha"), py::arg("importance") = py::none(),
        py::arg("max_norm") = INFINITY,
        "NashMTL, FairGrad and PIVRG on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("equiangular", &equiangular, py::arg("gram"), py::arg("length"),
        "ConFIG and IMTL-G on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("aligned", &aligned, py::arg("gram"), py::arg("preference") = py::none(), py::arg("scale") = 0,
        py::arg("mean") = false, "Aligned-MTL on a (T, T) float64 array: (weights (T), status (T)).");
  m.def("visiting_order", &visiting_order, py::arg("seed"), py::arg("step"), py::arg("tasks"),
        "PCGrad's visiting order of one step: (T, T - 1) int64.");
  py::dict flags;
  flags["NON_FINITE"] = static_cast<int64_t>(mtl::kNonFinite);
  flags["ZERO_GRADIENT"] = static_cast<int64_t>(mtl::kZeroGradient);
  flags["STATIONARY"] = static_cast<int64_t>(mtl::kStationary);
  flags["NO_CONVERGENCE"] = static_cast<int64_t>(mtl::kNoConvergence);
  flags["INVALID_LOSS"] = static_cast<int64_t>(mtl::kInvalidLoss);
  flags["INVALID_GRAM"] = static_cast<int64_t>(mtl::kInvalidGram);
  flags["ILL_CONDITIONED"] = static_cast<int64_t>(mtl::kIllConditioned);
  flags["NO_SOLUTION"] = static_cast<int64_t>(mtl::kNoSolution);
  m.attr("STATUS_FLAGS") = flags;
}

// Registration of the CPU kernels: unpack tensors, check, call. Schemas are defined in mtlkernels/ops.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "cpu/combine.h"
#include "cpu/gram.h"
#include "plan.h"
#include "solvers/avgnorm.h"
#include "solvers/cagrad.h"
#include "solvers/pcgrad.h"
#include "solvers/visiting_order.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
namespace mtl = mtlkernels;

std::optional<mtl::cpu::DType> kernel_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return mtl::cpu::DType::kFloat32;
    case ScalarType::Double: return mtl::cpu::DType::kFloat64;
    case ScalarType::BFloat16: return mtl::cpu::DType::kBFloat16;
    case ScalarType::Half: return mtl::cpu::DType::kFloat16;
    default: return std::nullopt;
  }
}

std::string name(int64_t task, int64_t param) {
  return "the gradient of task " + std::to_string(task) + " for parameter " + std::to_string(param);
}

// A task-major list of T * P gradients, unpacked: rows in place where they are contiguous, else copied once.
struct GradientList {
  int64_t tasks;
  mtl::cpu::DType dtype;
  std::vector<const void*> rows;  // T * P, null where the gradient is absent
  std::vector<int64_t> numel;     // P, 0 where every task's is absent
  std::vector<Tensor> copies;

  GradientList(const std::vector<Tensor>& grads, int64_t num_tasks) : tasks(num_tasks), rows(grads.size(), nullptr) {
    const auto count = static_cast<int64_t>(grads.size());
    STD_TORCH_CHECK(tasks >= 1 && count > 0 && count % tasks == 0, "expected a task-major list of num_tasks * P gradients, got ",
                    count, " gradients for ", tasks, " tasks");
    const int64_t params = count / tasks;
    const ScalarType type = grads[0].scalar_type();
    const auto known = kernel_dtype(type);
    STD_TORCH_CHECK(known.has_value(), "gradients must be float32, float64, bfloat16 or float16");
    dtype = *known;
    numel.assign(params, 0);
    std::vector<int64_t> first(params, -1);
    for (int64_t i = 0; i < count; ++i) {
      const Tensor& grad = grads[i];
      const int64_t task = i / params, param = i % params;
      STD_TORCH_CHECK(grad.scalar_type() == type, name(task, param),
                      " has another dtype than the first of the list: call once for each dtype");
      STD_TORCH_CHECK(grad.is_cpu(), name(task, param), " is not on the CPU as the first of the list is");
      const int64_t n = grad.numel();
      if (n == 0) continue;
      if (first[param] < 0) {
        first[param] = i;
        numel[param] = n;
      } else {
        STD_TORCH_CHECK(same_shape(grad, grads[first[param]]), name(task, param), " has another shape than task ",
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

  mtl::Plan plan() const { return mtl::make_plan(numel, tasks); }
};

constexpr auto kParallelFor = [](int64_t end, int64_t grain, const auto& body) {
  torch::stable::parallel_for(0, end, grain, body);
};

Tensor gram(std::vector<Tensor> grads, int64_t num_tasks) {
  const GradientList list(grads, num_tasks);
  const int64_t shape[] = {num_tasks, num_tasks};
  Tensor K = torch::stable::new_empty(grads[0], {shape, 2}, ScalarType::Double);
  mtl::cpu::gram(list.plan(), list.rows, num_tasks, list.dtype, static_cast<double*>(K.mutable_data_ptr()), kParallelFor);
  return K;
}

// Weights as float64 in contiguous memory, whatever their own dtype is.
std::vector<double> read_weights(const Tensor& weights, int64_t& tasks) {
  STD_TORCH_CHECK(weights.is_cpu(), "weights must be on the gradients' device, the CPU");
  STD_TORCH_CHECK(weights.dim() == 1 && weights.numel() >= 1, "weights must be a vector with one entry a task");
  tasks = weights.numel();
  std::vector<double> values(tasks);
  const int64_t stride = weights.stride(0);
  if (weights.scalar_type() == ScalarType::Double) {
    const auto* data = static_cast<const double*>(weights.const_data_ptr());
    for (int64_t t = 0; t < tasks; ++t) values[t] = data[t * stride];
  } else if (weights.scalar_type() == ScalarType::Float) {
    const auto* data = static_cast<const float*>(weights.const_data_ptr());
    for (int64_t t = 0; t < tasks; ++t) values[t] = data[t * stride];
  } else {
    STD_TORCH_CHECK(false, "weights must be float64 or float32");
  }
  return values;
}

Tensor combine(std::vector<Tensor> grads, Tensor weights) {
  int64_t tasks = 0;
  const std::vector<double> values = read_weights(weights, tasks);
  const GradientList list(grads, tasks);
  const mtl::Plan plan = list.plan();
  const int64_t length = plan.flat_length();
  Tensor out = torch::stable::new_empty(grads[0], {&length, 1});
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), 0.0, true, kParallelFor);
  return out;
}

void combine_out(std::vector<Tensor> grads, Tensor weights, Tensor out, double beta) {
  int64_t tasks = 0;
  const std::vector<double> values = read_weights(weights, tasks);
  const GradientList list(grads, tasks);
  const mtl::Plan plan = list.plan();
  STD_TORCH_CHECK(out.is_cpu() && out.scalar_type() == grads[0].scalar_type(), "out must have the gradients' dtype and device");
  STD_TORCH_CHECK(out.dim() == 1 && out.numel() == plan.flat_length() && out.is_contiguous(),
                  "out must be a contiguous vector of ", plan.flat_length(), " elements, as combine returns it");
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), beta, false, kParallelFor);
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
    STD_TORCH_CHECK(gram.size(0) <= mtl::kMaxTasks, "native solvers take at most ", mtl::kMaxTasks, " tasks, got ", gram.size(0));
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

int64_t task_ints(int64_t tasks) { return tasks; }
int64_t no_doubles(int64_t) { return 0; }

Tensor task_status(Tensor gram) {
  Problem problem(gram, no_doubles, task_ints);
  mtl::screen(mtl::HostLane{}, problem.k(), problem.tasks, problem.s(), problem.ints.data());
  return problem.status;
}

uint64_t read_word(const Tensor& scalar) {
  STD_TORCH_CHECK(scalar.is_cpu() && scalar.numel() == 1 && scalar.scalar_type() == ScalarType::Long,
                  "seed and step must be int64 scalars");
  return static_cast<uint64_t>(*static_cast<const int64_t*>(scalar.const_data_ptr()));
}

Tensor visiting_order(Tensor seed, Tensor step, int64_t num_tasks) {
  STD_TORCH_CHECK(num_tasks >= 1 && num_tasks <= mtl::kMaxTasks, "num_tasks must lie in 1 .. ", mtl::kMaxTasks);
  const int64_t shape[] = {num_tasks, num_tasks - 1};
  Tensor order = torch::stable::new_empty(seed, {shape, 2});
  mtl::visiting_order(mtl::HostLane{}, read_word(seed), read_word(step), static_cast<int>(num_tasks),
                      static_cast<int64_t*>(order.mutable_data_ptr()));
  return order;
}

std::tuple<Tensor, Tensor> pcgrad(Tensor gram, Tensor order, bool mean) {
  Problem problem(gram, mtl::pcgrad_workspace, task_ints);
  STD_TORCH_CHECK(order.is_cpu() && order.scalar_type() == ScalarType::Long && order.dim() == 2 && order.is_contiguous() &&
                      order.size(0) == problem.tasks && order.size(1) == problem.tasks - 1,
                  "order must be a contiguous int64 matrix (T, T - 1) on gram's device");
  const auto* visits = static_cast<const int64_t*>(order.const_data_ptr());
  for (int64_t i = 0; i < order.numel(); ++i)
    STD_TORCH_CHECK(visits[i] >= 0 && visits[i] < problem.tasks, "order names task ", visits[i], " of ", problem.tasks);
  mtl::pcgrad(mtl::HostLane{}, problem.k(), visits, problem.tasks, mean, problem.w(), problem.s(),
              problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> cagrad(Tensor gram, double c, int64_t rescale, bool sum) {
  Problem problem(gram, mtl::cagrad_workspace, mtl::cagrad_ints);
  mtl::cagrad(mtl::HostLane{}, problem.k(), problem.tasks, c, static_cast<mtl::Rescale>(rescale), sum, problem.w(),
              problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

std::tuple<Tensor, Tensor> avgnorm(Tensor gram, int64_t scale, double constant) {
  Problem problem(gram, mtl::avgnorm_workspace, task_ints);
  mtl::avgnorm(mtl::HostLane{}, problem.k(), problem.tasks, static_cast<mtl::NormScale>(scale), constant, problem.w(),
               problem.s(), problem.workspace.data(), problem.ints.data());
  return problem.answer();
}

// Loading this library for its solvers and facts must not take over where another backend was asked for.
bool another_backend_is_forced() {
  const char* forced = std::getenv("MTLKERNELS_BACKEND");
  return forced && *forced && std::string_view(forced) != "native";
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_out", TORCH_BOX(&combine_out));
  m.impl("task_status", TORCH_BOX(&task_status));
  m.impl("visiting_order", TORCH_BOX(&visiting_order));
  m.impl("pcgrad", TORCH_BOX(&pcgrad));
  m.impl("cagrad", TORCH_BOX(&cagrad));
  m.impl("avgnorm", TORCH_BOX(&avgnorm));
}

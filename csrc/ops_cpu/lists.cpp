// Registration of the CPU kernels over gradient lists: unpack tensors, check, call. Schemas are defined in
// mtlkernels/ops/lists.py.
#include <optional>
#include <string>
#include <vector>

#include "../cpu/combine.h"
#include "../cpu/gram.h"
#include "../plan.h"
#include "solve.h"

namespace mtlkernels::ops_cpu {
namespace {

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
  check(weights.is_cpu(), "weights must be on the gradients' device, the CPU");
  check(weights.dim() == 1 && weights.numel() >= 1, "weights must be a vector with one entry a task");
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
    check(false, "weights must be float64 or float32");
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
  check(out.is_cpu() && out.scalar_type() == grads[0].scalar_type(), "out must have the gradients' dtype and device");
  check(out.dim() == 1 && out.numel() == plan.flat_length() && out.is_contiguous(),
                  "out must be a contiguous vector of ", plan.flat_length(), " elements, as combine returns it");
  mtl::cpu::combine(plan, list.rows, values.data(), tasks, list.dtype, out.mutable_data_ptr(), beta, false, kParallelFor);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) {
  if (another_backend_is_forced()) return;
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_out", TORCH_BOX(&combine_out));
}

}  // namespace mtlkernels::ops_cpu

// Every native solver, registered once for all devices: a new one is an include and a line in `register_solvers`.
//
// Device: Host (cpu_solvers.cpp) or Cuda (cuda_solvers.cu). It runs a class with a static `solve` on its lanes, and has
// their memory.
#pragma once

#include <array>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../common/draws.h"
#include "../common/solver.h"
#include "../linalg/screen.h"
#include "../solvers/aligned.h"
#include "../solvers/avgnorm.h"
#include "../solvers/cagrad.h"
#include "../solvers/cone_projection.h"
#include "../solvers/equiangular.h"
#include "../solvers/fair.h"
#include "../solvers/gradnorm.h"
#include "../solvers/gradvac.h"
#include "../solvers/imgrad.h"
#include "../solvers/mgda.h"
#include "../solvers/pcgrad.h"
#include "../solvers/simplex_descent.h"
#include "arguments.h"

namespace mtlkernels::ops {

// One argument of a solver: what the op's schema has in its place, and how it becomes what `solve` takes.
template <class P>
struct Argument {  // a number or an enum
  static constexpr bool kOutput = false;
  using Given = std::conditional_t<std::is_enum_v<P>, int64_t, P>;
  template <class Device>
  static P taken(Given value, const char* name, const Tensor&) {
    if constexpr (std::is_enum_v<P>)
      check(value >= 0 && value <= static_cast<int64_t>(P::kLast), name, " must be one of 0 .. ",
            static_cast<int64_t>(P::kLast), ", got ", value);
    return static_cast<P>(value);
  }
};

template <class X, Shape shape, bool output>
struct Argument<Pointer<X, shape, output>> {
  using P = Pointer<X, shape, output>;
  static constexpr bool kOutput = output;
  using Given = std::conditional_t<shape == Shape::kTasksOrNone, std::optional<Tensor>, Tensor>;
  template <class Device>
  static P taken(const Given& x, const char* name, const Tensor& gram) {
    if constexpr (shape == Shape::kTasks) {
      return {task_vector(x, name, gram)};
    } else if constexpr (shape == Shape::kTasksOrNone) {
      return {x ? task_vector(*x, name, gram) : nullptr};
    } else if constexpr (shape == Shape::kTasksOrEmpty) {
      return {x.numel() ? task_vector(x, name, gram) : nullptr};
    } else if constexpr (shape == Shape::kPairs) {
      return {task_matrix(x, name, gram)};
    } else if constexpr (shape == Shape::kOrder) {
      return {task_order(x, gram, Device::kReadsNumbers)};
    } else {
      const int64_t* word = word_pointer(x, gram);
      if constexpr (std::is_const_v<X>)
        return {word};
      else
        return {static_cast<int64_t*>(x.mutable_data_ptr())};
    }
  }
  static P of(const Tensor& tensor) { return {static_cast<X*>(tensor.mutable_data_ptr())}; }
  static Tensor made(const Tensor& gram) {
    const int64_t shape_of_output[] = {gram.size(0), gram.size(0)};
    return torch::stable::new_empty(gram, {shape_of_output, shape == Shape::kPairs ? 2u : 1u});
  }
};

// K checked, and the outputs and memory of one call.
template <class Device, class S>
struct Call {
  int tasks;
  Tensor K, weights, status;
  typename Device::template Memory<double> doubles;
  typename Device::template Memory<int> ints;

  explicit Call(const Tensor& gram)
      : tasks(checked_tasks(gram)), K(torch::stable::contiguous(gram)), weights(vector(ScalarType::Double)),
        status(vector(ScalarType::Long)), doubles(K, S::doubles(tasks)), ints(K, S::ints(tasks)) {
    if constexpr (Device::kReadsNumbers && S::kOneBatch) check_inner_products(problem().K, tasks);
  }
  Tensor vector(ScalarType type) const {
    const int64_t n = tasks;
    return torch::stable::new_empty(K, {&n, 1}, type);
  }
  Problem problem() {
    return {
        static_cast<const double*>(K.const_data_ptr()),   tasks,          static_cast<double*>(weights.mutable_data_ptr()),
        static_cast<int64_t*>(status.mutable_data_ptr()), doubles.data(), ints.data()};
  }
};

// The op of a solver with the arguments P, of which the first are the inputs I, the others the outputs J.
template <class Device, class S, class Arguments, class Inputs, class Outputs>
struct Op;

template <size_t>
using TensorFor = Tensor;

template <class Device, class S, class... P, size_t... I, size_t... J>
struct Op<Device, S, std::tuple<P...>, std::index_sequence<I...>, std::index_sequence<J...>> {
  template <size_t N>
  using At = Argument<std::tuple_element_t<N, std::tuple<P...>>>;
  template <size_t N>
  using Output = At<sizeof...(I) + N>;

  static std::tuple<Tensor, Tensor, TensorFor<J>...> run(Tensor gram, typename At<I>::Given... given) {
    if constexpr (requires { S::refusal(given...); }) {
      const char* problem = S::refusal(given...);
      check(problem == nullptr, problem);
    }
    Call<Device, S> call(gram);
    std::array<Tensor, sizeof...(J)> more{Output<J>::made(call.K)...};
    Device(call.K).template run<S>(S::kName, call.problem(),
                                   At<I>::template taken<Device>(given, S::kArguments[I], call.K)...,
                                   Output<J>::of(more[J])...);
    return {call.weights, call.status, more[J]...};
  }
};

template <class Device, class S, class... P>
auto op_of(void (*)(const typename Device::Lanes&, const Problem&, P...)) {
  constexpr size_t outputs = (size_t{0} + ... + size_t{Argument<P>::kOutput});
  return Op<Device, S, std::tuple<P...>, std::make_index_sequence<sizeof...(P) - outputs>,
            std::make_index_sequence<outputs>>{};
}

template <class Device, class S, class Library>
void serve(Library& m) {
  using Served = decltype(op_of<Device, S>(&S::template solve<typename Device::Lanes>));
  m.impl(S::kName, TORCH_BOX(&Served::run));
}

template <class Device>
Tensor task_status(Tensor gram) {
  Call<Device, TaskStatus> call(gram);
  Device(call.K).template run<TaskStatus>("task_status", call.problem());
  return call.status;
}

template <class Device>
Tensor visiting_order(Tensor seed, Tensor step, int64_t num_tasks) {
  check(num_tasks >= 1 && num_tasks <= kMaxTasks, "num_tasks must lie in 1 .. ", kMaxTasks);
  const int64_t shape[] = {num_tasks, num_tasks - 1};
  Tensor order = torch::stable::new_empty(seed, {shape, 2});
  Device(seed).template run<VisitingOrder>("visiting_order", word_pointer(seed, seed), word_pointer(step, seed),
                                           static_cast<int>(num_tasks), static_cast<int64_t*>(order.mutable_data_ptr()));
  return order;
}

template <class Device>
Tensor normal_numbers(Tensor seed, Tensor step, int64_t n) {
  check(n >= 0, "n must not be negative");
  Tensor x = torch::stable::new_empty(seed, {&n, 1}, ScalarType::Double);
  Device(seed).template run<NormalNumbers>("normal_numbers", word_pointer(seed, seed), word_pointer(step, seed), n,
                                           static_cast<double*>(x.mutable_data_ptr()));
  return x;
}

template <class Device, class Library>
void register_solvers(Library& m) {
  if (another_backend_is_forced()) return;
  serve<Device, PCGrad>(m);
  serve<Device, PCGradDrawn>(m);
  serve<Device, CAGrad>(m);
  serve<Device, AvgNorm>(m);
  serve<Device, MGDA>(m);
  serve<Device, IMGrad>(m);
  serve<Device, DualProj>(m);
  serve<Device, UPGrad>(m);
  serve<Device, GradVac>(m);
  serve<Device, GradNorm>(m);
  serve<Device, SimplexDescent>(m);
  serve<Device, Fair>(m);
  serve<Device, Equiangular>(m);
  serve<Device, Aligned>(m);
  m.impl("task_status", TORCH_BOX(&task_status<Device>));
  m.impl("visiting_order", TORCH_BOX(&visiting_order<Device>));
  m.impl("normal_numbers", TORCH_BOX(&normal_numbers<Device>));
}

}  // namespace mtlkernels::ops

// What a solver is, so that torch/solvers.h can serve it on every device.
//
// A solver is a class with a name, the sizes of its memory and a static template
//     solve(lanes, problem, arguments ...)
// whose arguments are numbers, enums with a kLast, and the types below: inputs in the order of the op's schema, then outputs
// beside weights and status. Everything a type points to is on the device that solves.
#pragma once

#include "lanes.h"

namespace mtlkernels {

struct Problem {
  const double* K;    // (T, T) row by row: a Gram matrix, or the products of two batches
  int tasks;          // T
  double* weights;    // (T) output
  int64_t* status;    // (T) output
  double* workspace;  // memory that all lanes see
  int* ints;
};

enum class Shape { kTasks, kTasksOrNone, kTasksOrEmpty, kPairs, kOrder, kWord };

template <class X, Shape shape, bool output = false>
struct Pointer {
  X* at;

  MTLKERNELS_HOST_DEVICE operator X*() const { return at; }
};

using TaskNumbers = Pointer<const double, Shape::kTasks>;            // (T)
using OptionalNumbers = Pointer<const double, Shape::kTasksOrNone>;  // (T), or null: the schema has Tensor?
using NumbersOrEmpty = Pointer<const double, Shape::kTasksOrEmpty>;  // (T), or null where the tensor is empty
using PairNumbers = Pointer<const double, Shape::kPairs>;            // (T, T)
using TaskOrder = Pointer<const int64_t, Shape::kOrder>;             // (T, T - 1), row i the tasks as task i visits them
using Word = Pointer<const int64_t, Shape::kWord>;                   // a scalar
using Counter = Pointer<int64_t, Shape::kWord>;                      // a scalar that the solver counts up
using NextTaskNumbers = Pointer<double, Shape::kTasks, true>;        // (T)
using NextPairNumbers = Pointer<double, Shape::kPairs, true>;        // (T, T)

// What a solver has where it says nothing else.
struct Solver {
  static constexpr bool kOneBatch = true;  // K is symmetric: on the CPU another one is an error
  static constexpr int64_t doubles(int64_t) { return 0; }
  static constexpr int64_t ints(int64_t tasks) { return tasks; }
};

}  // namespace mtlkernels

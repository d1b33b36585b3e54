// mtlkernels._C: build facts, constants and the planner, for tests and people. No tensor passes here: operators are
// registered with torch's dispatcher by torch/, which importing this module loads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/gram_noise.h"
#include "common/launches.h"
#include "cpu/kernels.h"
#include "linalg/screen.h"
#include "solvers/aligned.h"
#include "solvers/avgnorm.h"
#include "solvers/equiangular.h"
#include "solvers/imgrad.h"

namespace py = pybind11;
namespace mtl = mtlkernels;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = MTLKERNELS_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cplusplus"] = static_cast<int64_t>(__cplusplus);
  info["pybind11"] = std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR);
  info["built_with_torch"] = MTLKERNELS_TORCH_VERSION;
  info["stable_abi_target"] = "2.10";
  info["instruction_set"] = mtl::cpu::kernels().name;
  std::vector<std::string> found;
  for (const mtl::cpu::Kernels* set : mtl::cpu::found_kernels()) found.push_back(set->name);
  info["instruction_sets_found"] = found;
  return info;
}

mtl::Plan checked_plan(std::vector<int64_t> numel, int64_t tasks, bool gram) {
  if (tasks < 1) throw std::invalid_argument("tasks must be at least 1");
  for (int64_t n : numel)
    if (n < 0) throw std::invalid_argument("sizes must not be negative");
  return mtl::make_plan(std::move(numel), gram ? mtl::gram_segments(tasks) : mtl::row_segments(tasks));
}

// The segments of every CUDA launch.
std::vector<int64_t> launches(std::vector<int64_t> numel, int64_t tasks, bool gram) {
  const mtl::Plan plan = checked_plan(std::move(numel), tasks, gram);
  const int64_t capacity = mtl::table_capacity(mtl::kTableWords, tasks);
  if (capacity < 1) throw std::invalid_argument("no table holds the gradients of so many tasks");
  std::vector<int64_t> segments;
  mtl::for_each_launch(plan, mtl::present_parameters(plan), capacity, [&](int64_t, int64_t, const mtl::Portion& portion) {
    segments.push_back(portion.last - portion.first);
  });
  return segments;
}

py::dict plan(std::vector<int64_t> numel, int64_t tasks, bool gram) {
  const mtl::Plan plan = checked_plan(std::move(numel), tasks, gram);
  std::vector<std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>> segments(plan.segments);
  for (int64_t s = 0; s < plan.segments; ++s)
    mtl::for_each_piece(plan, s, [&](const mtl::Piece& p) { segments[s].emplace_back(p.param, p.begin, p.length, p.flat); });
  py::dict result;
  result["offsets"] = plan.offset;
  result["flat_length"] = plan.flat_length();
  result["segments"] = segments;
  return result;
}

// What Python has a copy of: enum -> name -> value, and numbers.
py::dict constants() {
  using namespace mtl;
  using Values = std::map<std::string, int64_t>;
  const auto number = [](auto value) { return static_cast<int64_t>(value); };
  py::dict all;
  all["Status"] =
      Values{{"NON_FINITE", kNonFinite},           {"ZERO_GRADIENT", kZeroGradient}, {"STATIONARY", kStationary},
             {"NO_CONVERGENCE", kNoConvergence},   {"NO_SOLUTION", kNoSolution},     {"INVALID_LOSS", kInvalidLoss},
             {"ILL_CONDITIONED", kIllConditioned}, {"INVALID_GRAM", kInvalidGram}};
  all["Rescale"] =
      Values{{"NONE", number(Rescale::kNone)}, {"SQUARE", number(Rescale::kSquare)}, {"LINEAR", number(Rescale::kLinear)}};
  all["NormScale"] = Values{{"SUM", number(NormScale::kSum)},           {"MAX", number(NormScale::kMax)},
                            {"MEAN", number(NormScale::kMean)},         {"RMS", number(NormScale::kRms)},
                            {"MEDIAN", number(NormScale::kMedian)},     {"MIN", number(NormScale::kMin)},
                            {"CONSTANT", number(NormScale::kConstant)}, {"HARMONIC", number(NormScale::kHarmonic)}};
  all["IMGradForm"] = Values{{"PAPER", number(IMGradForm::kPaper)}, {"CODE", number(IMGradForm::kCode)}};
  all["EquiangularLength"] =
      Values{{"PROJECTIONS", number(EquiangularLength::kProjections)}, {"UNIT_SUM", number(EquiangularLength::kUnitSum)}};
  all["AlignedScale"] = Values{
      {"MIN", number(AlignedScale::kMin)}, {"MEDIAN", number(AlignedScale::kMedian)}, {"RMSE", number(AlignedScale::kRms)}};
  all["align"] = kAlign;
  all["max_tasks"] = kMaxTasks;
  all["gram_noise"] = kGramNoise;
  return all;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native side of mtlkernels: build facts, constants and the planner.";
  m.def("build_info", &build_info, "Versions, compiler and instruction sets of this build and this processor.");
  m.def("constants", &constants, "The values that Python has a copy of.");
  m.def("plan", &plan, py::arg("numel"), py::arg("tasks"), py::arg("gram") = true,
        "Flat offsets (multiples of 16 elements) of parameters with `numel` elements each, and the pieces\n"
        "(parameter, begin, length, flat offset) of every segment of a Gram matrix, or of a row kernel.");
  m.def("launches", &launches, py::arg("numel"), py::arg("tasks"), py::arg("gram") = false,
        "The number of segments of each CUDA launch: the blocks of a row kernel's grid.");
}

// Registration of the solvers on the CPU. Schemas are defined in mtlkernels/ops/solvers.py.
#include <vector>

#include "solvers.h"

namespace mtlkernels::ops {
namespace {

// A device of solvers.h: one lane and a vector.
struct Host {
  using Lanes = HostLane;
  static constexpr bool kReadsNumbers = true;

  template <class X>
  struct Memory : std::vector<X> {
    Memory(const Tensor&, int64_t n) : std::vector<X>(n) {}
  };

  explicit Host(const Tensor&) {}
  template <class S, class... Arguments>
  void run(const char*, const Arguments&... arguments) const {
    S::solve(HostLane{}, arguments...);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mtlkernels, CPU, m) { register_solvers<Host>(m); }

}  // namespace mtlkernels::ops

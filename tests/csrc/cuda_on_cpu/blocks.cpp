// What blocks of one launch tell each other, with all of them running at the same time: a Gram matrix that its last block
// finishes, against one finished by a launch of its own.
#include "../../../csrc/cuda/gram.cuh"
#include "cases.h"

namespace {

template <class S>
void check_gram(const Case& c, int repeats) {
  const Data<S> data(c);
  const int64_t T = c.tasks, counters = gram_tickets(data.gram_plan, T);
  expect(counters > 0 && counters <= kTickets, "%s: %ld counters", c.name.c_str(), static_cast<long>(counters));
  std::vector<double> expected(T * T, NAN), workspace(gram_workspace(data.gram_plan, T), NAN);
  gram<S>(data.gram_plan, data.rows, T, expected.data(), workspace.data(), -1, nullptr);
  for (int run = 0; run < repeats; ++run) {
    std::vector<double> K(T * T, NAN);
    workspace.assign(workspace.size(), NAN);
    gram<S>(data.gram_plan, data.rows, T, K.data(), workspace.data(), 3, nullptr);
    for (int64_t k = 0; k < T * T; ++k)
      expect(K[k] == expected[k], "%s: K[%ld] = %g, expected %g", c.name.c_str(), static_cast<long>(k), K[k], expected[k]);
    expect(std::all_of(tickets, tickets + kTickets, [](unsigned count) { return count == 0; }), "%s: a counter is left",
           c.name.c_str());
  }
}

}  // namespace

int main() {
  check_gram<float>({"one segment", 3, {70}}, 3);
  check_gram<float>({"a group that is not full", 2, {5 * 4096 + 1}}, 20);
  check_gram<float>({"several groups", 3, {9000, 3 * 4096, 5, 7 * 4096}}, 20);
  check_gram<float>({"tiles", 9, {3000, 4 * 4096}}, 10);
  check_gram<BFloat16>({"tiles of one task beside others", 13, {9 * 4096}}, 3);
  check_gram<double>({"float64", 8, {70, 4 * 4096}}, 5);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}

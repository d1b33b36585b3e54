// Trimmed mean of T rows: in every column the `trim` smallest and `trim` largest values are left out and the rest is
// averaged in the accumulator's type, in float64 where that overflows. Bubbles move the extremes to the two ends, whole
// columns at a time: 2 trim T comparisons an element. An absent row counts as zeros. A NaN in a column makes its result NaN;
// an infinity is an extreme value like others.

constexpr int64_t kTrimColumns = 256;

template <class A>
MTLKERNELS_INLINE void order_pair(A* below, A* above, int64_t n) {
  int64_t k = 0;
  for (; k + kLanes<A> <= n; k += kLanes<A>) {
    const auto a = load(below + k), b = load(above + k);
    store(a < b ? a : b, below + k);
    store(a < b ? b : a, above + k);
  }
  for (; k < n; ++k) {
    const A a = below[k], b = above[k];
    below[k] = a < b ? a : b;
    above[k] = a < b ? b : a;
  }
}

template <class A>
MTLKERNELS_NOINLINE void move_extremes_out(A* values, int64_t tasks, int64_t trim, int64_t n) {
  for (int64_t j = 0; j < trim; ++j) {
    for (int64_t t = j; t + 1 < tasks - j; ++t) order_pair(values + t * kTrimColumns, values + (t + 1) * kTrimColumns, n);
    for (int64_t t = tasks - 2 - j; t > j; --t) order_pair(values + (t - 1) * kTrimColumns, values + t * kTrimColumns, n);
  }
}

// Puts the mean in float64 in place of every mean that is not finite: a sum may overflow whose mean does not.
template <class A>
MTLKERNELS_NOINLINE void mend_means(const A* values, int64_t tasks, int64_t trim, int64_t n, A* mean) {
  for (int64_t k = 0; k < n; ++k) {
    if (zero_if_finite(mean[k]) == 0) continue;
    double total = 0;
    for (int64_t t = trim; t < tasks - trim; ++t) total += values[t * kTrimColumns + k];
    mean[k] = static_cast<A>(total / static_cast<double>(tasks - 2 * trim));
  }
}

// scratch: tasks * kTrimColumns accumulators.
template <class S>
void trimmed_mean(const void* const* rows, int64_t tasks, int64_t length, int64_t trim, void* out_memory, void* scratch) {
  using A = accumulator_t<S>;
  A* const values = static_cast<A*>(scratch);
  S* const out = static_cast<S*>(out_memory);
  alignas(64) A total[kTrimColumns], spoilt[kTrimColumns];
  const A count = static_cast<A>(tasks - 2 * trim);
  for (int64_t begin = 0; begin < length; begin += kTrimColumns) {
    const int64_t n = std::min(kTrimColumns, length - begin);
    std::fill(spoilt, spoilt + n, A{0});
    std::fill(total, total + n, A{0});
    for (int64_t t = 0; t < tasks; ++t) {
      A* const row = values + t * kTrimColumns;
      if (!rows[t]) {
        std::fill(row, row + n, A{0});
        continue;
      }
      const A* x = widened(static_cast<const S*>(rows[t]) + begin, n, row);
      if constexpr (std::is_same_v<S, A>) std::copy(x, x + n, row);
      for (int64_t k = 0; k < n; ++k) spoilt[k] = row[k] == row[k] ? spoilt[k] : row[k];
    }
    move_extremes_out(values, tasks, trim, n);
    for (int64_t t = trim; t < tasks - trim; ++t)
      for (int64_t k = 0; k < n; ++k) total[k] += values[t * kTrimColumns + k];
    for (int64_t k = 0; k < n; ++k) total[k] /= count;
    if (!all_finite(total, n)) mend_means(values, tasks, trim, n, total);
    for (int64_t k = 0; k < n; ++k) total[k] = spoilt[k] == A{0} ? total[k] : spoilt[k];
    store_run<S>(total, n, out + begin, false);
  }
}

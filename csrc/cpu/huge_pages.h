// A fresh large buffer costs a page fault for every 4 KiB written, several times the write itself. Where the system
// leaves the choice to programs, asking for huge pages makes that one fault for every 2 MiB.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mtlkernels::cpu {

inline void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kHuge = int64_t{2} << 20;
  const auto first = (reinterpret_cast<intptr_t>(memory) + kHuge - 1) & -kHuge;
  const auto last = (reinterpret_cast<intptr_t>(memory) + bytes) & -kHuge;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace mtlkernels::cpu

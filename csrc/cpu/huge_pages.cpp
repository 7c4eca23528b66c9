#include "cpu/huge_pages.h"

#if defined(__linux__)
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pyfold::cpu {

#if defined(__linux__)

namespace {

// From this size on glibc takes an array from the system and gives it back when it is freed, unless freed memory of
// smaller ones has joined to as much; that memory has been in use, and is left alone.
constexpr size_t kLeast = size_t{32} << 20;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

bool wanted() {
  static const bool value = [] {
    const char* text = getenv("PYFOLD_HUGE_PAGES");
    return text == nullptr || strcmp(text, "0") != 0;
  }();
  return value;
}

bool in_memory(uintptr_t address) {
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  unsigned char resident = 1;
  if (mincore(reinterpret_cast<void*>(address & ~(page - 1)), 1, &resident) != 0) return true;
  return (resident & 1) != 0;
}

}  // namespace

void prefer_huge_pages(void* data, size_t bytes) {
  if (bytes < kLeast || !wanted()) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  if (in_memory(address + bytes / 2)) return;
  // Whole huge pages alone, so that no memory beyond the result is taken.
  const uintptr_t begin = (address + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (address + bytes) & ~(kHugePage - 1);
  // A hint: where the system has no huge pages, all is as without it.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

#else

void prefer_huge_pages(void*, size_t) {}

#endif

}  // namespace pyfold::cpu

#pragma once

#include <stddef.h>

#include <span>

#include "core/view.h"
#include "cpu/tier.h"

namespace pyfold::cpu {

// Asks the system for huge pages under a result of 32 MiB or more that has no memory yet, before it is written: as 8192
// page faults or more it would take longer than most ops. Memory in use is left as it is, and the environment variable
// PYFOLD_HUGE_PAGES=0 turns this off.
PYFOLD_EXPORT void prefer_huge_pages(void* data, size_t bytes);

// The same for the results of a call; those that it does not ask for are empty.
inline void prefer_huge_pages(const Geometry& geometry, std::span<const View* const> results) {
  for (const View* view : results) {
    if (*view)
      prefer_huge_pages(view->data, static_cast<size_t>(geometry.rows * geometry.numel * size_of(view->dtype)));
  }
}

}  // namespace pyfold::cpu

#pragma once

#include <stddef.h>

#include "cpu/tier.h"

namespace pyfold::cpu {

// Asks the system for huge pages under a result of 32 MiB or more that has no memory yet, before it is written: as 8192
// page faults or more it would take longer than most ops. Memory in use is left as it is, and the environment variable
// PYFOLD_HUGE_PAGES=0 turns this off.
PYFOLD_EXPORT void prefer_huge_pages(void* data, size_t bytes);

}  // namespace pyfold::cpu

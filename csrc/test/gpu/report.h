#pragma once

#include <string>
#include <vector>

#include "test/gpu/machine.h"

namespace pyfold::gpu {

// What kernels have executed, as JSON: one object a kernel, with launches, threads, PTX instructions executed (by all
// threads, and by opcode), requests and 32-byte sectors of global memory, its widest accesses, and the basic blocks
// with the threads that entered each.
std::string report(const std::vector<const Kernel*>& kernels);

}  // namespace pyfold::gpu

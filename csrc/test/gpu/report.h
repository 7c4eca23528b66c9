#pragma once

#include <string>
#include <vector>

#include "test/gpu/machine.h"

namespace pyfold::gpu {

// What kernels have executed, as JSON: one object a kernel, with launches, threads, PTX instructions executed (by all
// threads, and by opcode), requests and 32-byte sectors of global memory, its widest accesses, its largest block's
// threads and bytes of shared memory, the threads that executed each line of the module's text, and those that entered
// each basic block.
std::string report(const std::vector<const Kernel*>& kernels);

}  // namespace pyfold::gpu

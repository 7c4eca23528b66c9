#pragma once

#include "test/gpu/machine.h"

namespace pyfold::gpu {

// Loads and stores of every address space. Each lane's access must be aligned to all of its bytes and lie within one
// allocation; races and reads of what was never written are looked for on the way.
void load(Warp& warp, const Instruction& instruction);
void store(Warp& warp, const Instruction& instruction);

}  // namespace pyfold::gpu

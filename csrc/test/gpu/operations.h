#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "test/gpu/machine.h"

namespace pyfold::gpu {

// What an opcode does with registers, and the types of its operands: the destination's, then the sources'. A
// predicate's type is {'p', 0}.
struct Operation {
  Run run = nullptr;
  std::vector<Type> types;
  Flow flow = Flow::kCompute;
};

// Null for an opcode that is not known.
const Operation* find_operation(std::string_view opcode);

// What find_operation leaves out: {a, b} of `bytes` each into a register, and back; and a register into one of another
// width. Null where there is none.
Run pack_operation(int bytes, int count);
Run unpack_operation(int bytes, int count);
Run resize_operation(int to, int from, bool with_sign);

// Why an opcode that is not known is refused.
std::string reason_to_refuse(std::string_view opcode);

}  // namespace pyfold::gpu

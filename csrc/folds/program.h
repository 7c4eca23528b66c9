#pragma once

#include <stdint.h>

#include <algorithm>

#include "folds/sequence.h"

// A program as its caller writes it, made into a kernel's argument; on the host.
namespace pyfold {

// Constants, rows and planes that an instruction may touch, for units of so many rows.
struct SequenceReach {
  int constants, planes;
  bool pair;  // of rows i and j
};

// False where there is no such instruction.
inline bool sequence_reach(FoldOp op, int r, bool shifts, SequenceReach& reach) {
  switch (op) {
#define PYFOLD_FOLD_OP(name, constants, planes, pair) \
  case FoldOp::k##name:                               \
    return reach = {constants, planes, pair}, true;
    PYFOLD_FOLD_OPS(PYFOLD_FOLD_OP)
#undef PYFOLD_FOLD_OP
  }
  return false;
}

// What is wrong with an instruction of a program for units of so many rows, or null; reach becomes what it touches.
inline const char* instruction_error(const FoldInstruction& given, SequenceMode mode, bool first, int rows,
                                     SequenceReach& reach) {
  const FoldOp op = static_cast<FoldOp>(given.op);
  if (!sequence_reach(op, rows, given.j != 0, reach)) return "the program has an unknown instruction";
  if (given.i >= rows || (reach.pair && (given.j >= rows || given.i == given.j))) {
    return "an instruction leaves the rows of its unit";
  }
  if (mode == SequenceMode::kInverse && (op == FoldOp::kTri || op == FoldOp::kBox)) {
    return "the bits of this program's box or tri say too little for its inverse";
  }
  if (op == FoldOp::kCrelu && !(first && rows == 1)) return "crelu takes one row, and comes first";
  if (op == FoldOp::kMatrix && rows > kMaxMatrixRows) return "a matrix has at most 6 rows";
  static_assert(kMaxMatrixRows == 6);
  return nullptr;
}

// Copies a program of size numbers, five to each instruction, and checks that it stays inside its memory. rows becomes
// the rows that a unit ends with, parameter_count how many parameters it needs. Returns null, or what is wrong.
inline const char* sequence_program(SequenceArgs& args, const int64_t* program, int64_t size, const double* constants,
                                    int64_t constant_count, int64_t& parameter_count, int& rows) {
  if (size % 5 != 0 || size / 5 > kMaxInstructions) return "a program has up to 280 instructions of 5 numbers";
  if (constant_count > kMaxConstants) return "a program has at most 104 constants";
  if (rows < 1 || rows > kMaxRows) return "a unit has 1 to 192 rows";
  static_assert(kMaxInstructions == 280 && kMaxConstants == 104 && kMaxRows == 192);
  args.count = static_cast<int>(size / 5);
  for (int k = 0; k < args.count; ++k) {
    const int64_t* from = program + 5 * k;
    for (int f = 0; f < 5; ++f) {
      if (from[f] < 0 || from[f] > INT16_MAX) return "bad instruction";
    }
    FoldInstruction& to = args.instructions[k];
    to = {static_cast<int16_t>(from[0]), static_cast<int16_t>(from[1]), static_cast<int16_t>(from[2]),
          static_cast<int16_t>(from[3]), static_cast<int16_t>(from[4])};
    SequenceReach reach;
    if (const char* wrong = instruction_error(to, args.mode, k == 0, rows, reach)) return wrong;
    const int64_t end = reach.constants == 0 ? 0 : to.constant + reach.constants;
    if (to.constant >= kParameters) {
      parameter_count = std::max(parameter_count, end - kParameters);
    } else if (end > constant_count) {
      return "an instruction leaves the constants of its program";
    }
    args.planes = std::max(args.planes, to.plane + reach.planes);
    if (static_cast<FoldOp>(to.op) == FoldOp::kCrelu) rows = 2;
  }
  std::copy(constants, constants + constant_count, args.constants);
  return nullptr;
}

}  // namespace pyfold

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace pyfold::gpu {

// The text of a PTX module as structures; csrc/test/gpu/decode.h gives them meaning.

enum class Space { kGeneric, kGlobal, kConst, kShared, kLocal, kParameter, kFrame };

struct Type {
  char kind = 'b';  // p: predicate; b, u, s: integers; f: floating point; h: bfloat16
  int bytes = 0;    // 0 for a predicate

  // "f32" and its like; false if it is none.
  static bool parse(std::string_view name, Type& type);
};

struct Variable {
  std::string name;
  Space space = Space::kGlobal;  // kFrame: a parameter or result of a function that is called
  uint64_t bytes = 0, align = 1;
  std::vector<uint8_t> initial;
  bool external = false;  // shared memory whose size the launch gives
};

struct Operand {
  // kMemory is [base + offset]; kList is {a, b} or (a, b); kSink is _.
  enum class Kind { kRegister, kSpecial, kInteger, kFloat32, kFloat64, kSymbol, kMemory, kList, kSink };
  Kind kind = Kind::kSink;
  bool negated = false;        // of a predicate
  int index = -1;              // of the register in its function
  uint64_t bits = 0;           // of an immediate; the offset of kMemory
  std::string name;            // of a symbol, a label, a function or a special register
  std::vector<Operand> parts;  // of kList; the base of kMemory; both of a|b
};

struct Statement {
  int guard = -1;  // the register of @p or @!p
  bool guard_negated = false;
  std::string_view opcode;
  std::vector<Operand> operands;
  std::string_view text;
  std::string source;  // file:line, where the module was compiled with -lineinfo
  uint32_t line = 0;   // of the module's text, from 1
};

struct Function {
  std::string name;
  bool entry = false;
  std::vector<Variable> parameters, results;
  std::vector<Variable> variables;  // local, shared and frame variables of the body
  std::vector<Type> registers;
  std::vector<Statement> body;
  std::map<std::string, size_t> labels;  // the statement each is before
  std::map<std::string, std::vector<std::string>> branch_targets;
  int max_threads = 0;  // 0: not said
};

struct Module {
  std::string text;
  std::vector<Variable> variables;
  std::map<std::string, Function> functions;
};

Module parse_ptx(std::string_view text);

}  // namespace pyfold::gpu

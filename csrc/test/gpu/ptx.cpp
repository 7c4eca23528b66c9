#include "test/gpu/ptx.h"

#include <algorithm>
#include <stdexcept>

#include "test/gpu/fault.h"
#include "test/gpu/lexer.h"

namespace pyfold::gpu {
namespace {

constexpr std::string_view kSpecials[] = {"%tid.",        "%ntid.",       "%ctaid.",      "%nctaid.",
                                          "%laneid",      "%warpid",      "%nwarpid",     "%lanemask_eq",
                                          "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge"};

bool is_linkage(std::string_view directive) {
  return directive == ".visible" || directive == ".weak" || directive == ".extern" || directive == ".common";
}

std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text), tokens_(tokens_of(text)) {}

  void parse(Module& module) {
    name_files();
    while (!at_end()) {
      if (here().is(".section")) {
        skip_section();
      } else if (here().kind == Token::Kind::kLine || here().is(";") || is_linkage(here().text)) {
        next();
      } else if (here().is(".entry") || here().is(".func")) {
        function(module);
      } else if (here().is(".global") || here().is(".const") || here().is(".shared")) {
        module.variables.push_back(variable());
      } else {
        refuse("at the top of a module");
      }
    }
  }

 private:
  const Token& here() const { return tokens_[at_]; }
  bool at_end() const { return here().kind == Token::Kind::kEnd; }
  bool take(std::string_view text) {
    if (at_end() || !here().is(text)) return false;
    ++at_;
    return true;
  }
  void expect(std::string_view text) {
    if (!take(text)) refuse("where " + quoted(text) + " is due");
  }
  std::string_view next() {
    if (at_end()) refuse("at the end");
    return tokens_[at_++].text;
  }
  [[noreturn]] void refuse(const std::string& where) const {
    const size_t from = here().text.empty() ? 0 : static_cast<size_t>(here().text.data() - text_.data());
    throw Fault("PTX: " + quoted(text_.substr(from, 80)) + " is not understood " + where);
  }

  void name_files() {
    for (const Token& token : tokens_) {
      if (token.kind != Token::Kind::kLine || !token.text.starts_with(".file")) continue;
      const std::string line(token.text);
      const size_t open = line.find('"'), close = line.rfind('"'), slash = line.rfind('/');
      if (open == close) continue;
      const size_t from = slash == std::string::npos || slash < open ? open + 1 : slash + 1;
      files_[std::stoi(line.substr(5))] = line.substr(from, close - from);
    }
  }

  void skip_section() {
    while (!take("{")) next();
    while (!take("}")) next();
  }

  uint64_t number() {
    const bool negative = take("-");
    const Operand value = immediate(std::string(next()));
    return negative ? -value.bits : value.bits;
  }

  static Operand immediate(const std::string& text) {
    Operand value;
    value.kind = Operand::Kind::kInteger;
    const bool hex_float = text.size() > 2 && text[0] == '0';
    if (hex_float && (text[1] == 'f' || text[1] == 'F')) {
      value.kind = Operand::Kind::kFloat32;
      value.bits = std::stoull(text.substr(2), nullptr, 16);
    } else if (hex_float && (text[1] == 'd' || text[1] == 'D')) {
      value.kind = Operand::Kind::kFloat64;
      value.bits = std::stoull(text.substr(2), nullptr, 16);
    } else {
      value.bits = std::stoull(text, nullptr, 0);  // a U at the end is left over
    }
    return value;
  }

  // From the state space to the end of the declaration, as in .shared .align 8 .b8 name[16]; a parameter's has no ;.
  Variable variable() {
    Variable result;
    const std::string_view space = next();
    result.space = space == ".global"   ? Space::kGlobal
                   : space == ".const"  ? Space::kConst
                   : space == ".shared" ? Space::kShared
                   : space == ".local"  ? Space::kLocal
                                        : Space::kFrame;
    Type type;
    for (bool named = false; !named;) {
      if (take(".align")) {
        result.align = number();
      } else if (take(".ptr") || take(".global") || take(".shared") || take(".const") || take(".local")) {
        continue;
      } else if (here().kind == Token::Kind::kDirective && Type::parse(here().text.substr(1), type)) {
        next();
      } else {
        named = true;
      }
    }
    if (here().kind != Token::Kind::kName) refuse("where a variable's name is due");
    result.name = next();
    uint64_t count = 1;
    while (take("[")) {
      if (take("]")) {
        result.external = true;
        count = 0;
        continue;
      }
      count *= number();
      expect("]");
    }
    result.bytes = count * static_cast<uint64_t>(type.bytes);
    result.align = std::max<uint64_t>(result.align, static_cast<uint64_t>(type.bytes));
    if (take("=")) {
      result.initial.resize(result.bytes);
      initial_values(result, type);
    }
    return result;
  }

  void initial_values(Variable& variable, const Type& type) {
    const bool list = take("{");
    uint64_t place = 0;
    do {
      const uint64_t value = number();
      if (place + static_cast<uint64_t>(type.bytes) > variable.bytes) refuse("beyond the size of " + variable.name);
      for (int b = 0; b < type.bytes; ++b) variable.initial[place++] = static_cast<uint8_t>(value >> (8 * b));
    } while (list && take(","));
    if (list) expect("}");
  }

  std::vector<Variable> parameters() {
    std::vector<Variable> result;
    if (!take("(")) return result;
    while (!take(")")) {
      result.push_back(variable());
      take(",");
    }
    return result;
  }

  void function(Module& module) {
    Function function;
    function.entry = next() == ".entry";
    function.results = parameters();
    function.name = next();
    function.parameters = parameters();
    while (!here().is("{") && !here().is(";")) {
      if (take(".maxntid") || take(".reqntid")) {
        function.max_threads = static_cast<int>(number());
        while (take(",")) function.max_threads *= static_cast<int>(number());
      } else {
        next();  // hints to the assembler: .minnctapersm, .noreturn and their like
      }
    }
    if (take(";")) return;  // a declaration
    current_ = &function;
    scopes_.clear();
    source_.clear();
    body();
    if (function.entry) {
      for (Variable& parameter : function.parameters) parameter.space = Space::kParameter;
    }
    module.functions[function.name] = std::move(function);
  }

  void body() {
    expect("{");
    scopes_.emplace_back();
    while (!scopes_.empty()) {
      if (take("{")) {
        scopes_.emplace_back();
      } else if (take("}")) {
        scopes_.pop_back();
      } else if (here().is(".reg")) {
        next();
        registers();
      } else if (here().is(".local") || here().is(".shared") || here().is(".param")) {
        Variable declared = variable();
        expect(";");
        // Blocks of calls declare param0 again and again.
        const std::string unique = declared.name + "#" + std::to_string(current_->variables.size());
        if (declared.space == Space::kFrame) scopes_.back().names[declared.name] = unique, declared.name = unique;
        current_->variables.push_back(declared);
      } else if (here().is(".pragma")) {
        while (!take(";")) next();
      } else if (here().kind == Token::Kind::kLine) {
        location(std::string(next()));
      } else if (here().kind == Token::Kind::kName && tokens_[at_ + 1].is(":")) {
        label();
      } else {
        statement();
      }
    }
  }

  // .loc FILE LINE COLUMN ...
  void location(const std::string& line) {
    if (!line.starts_with(".loc")) return;
    size_t used = 0;
    const int file = std::stoi(line.substr(4), &used);
    source_ = files_[file] + ":" + std::to_string(std::stoi(line.substr(4 + used)));
  }

  void label() {
    const std::string name(next());
    expect(":");
    if (take(".branchtargets")) {
      std::vector<std::string>& targets = current_->branch_targets[name];
      do {
        targets.emplace_back(next());
      } while (take(","));
      expect(";");
      return;
    }
    current_->labels[name] = current_->body.size();
  }

  void registers() {
    Type type;
    const std::string_view written = next().substr(1);
    if (!Type::parse(written, type)) refuse("as the type " + quoted(written) + " of a register");
    do {
      const std::string name(next());
      if (take("<")) {
        const uint64_t count = number();
        expect(">");
        for (uint64_t i = 0; i < count; ++i) declare(name + std::to_string(i), type);
      } else {
        declare(name, type);
      }
    } while (take(","));
    expect(";");
  }

  void declare(const std::string& name, const Type& type) {
    scopes_.back().registers[name] = static_cast<int>(current_->registers.size());
    current_->registers.push_back(type);
  }

  int find_register(std::string_view name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->registers.find(std::string(name));
      if (found != scope->registers.end()) return found->second;
    }
    return -1;
  }

  void statement() {
    Statement result;
    const char* first = here().text.data();
    if (take("@")) {
      result.guard_negated = take("!");
      result.guard = find_register(next());
      if (result.guard < 0) refuse("as what follows an undeclared guard");
    }
    if (here().kind != Token::Kind::kName) refuse("where an instruction is due");
    result.opcode = next();
    while (!here().is(";")) {
      result.operands.push_back(operand());
      if (!here().is(";")) expect(",");
    }
    const char* last = next().data();
    result.text = std::string_view(first, static_cast<size_t>(last - first));
    result.source = source_;
    line_ += static_cast<uint32_t>(std::count(counted_, first, '\n'));
    counted_ = first;
    result.line = line_;
    current_->body.push_back(std::move(result));
  }

  Operand operand() {
    Operand result;
    if (take("[")) {
      result.kind = Operand::Kind::kMemory;
      result.parts.push_back(operand());
      if (take("+")) result.bits = number();
      expect("]");
      return result;
    }
    if (here().is("{") || here().is("(")) {
      const std::string_view close = next() == "{" ? "}" : ")";
      result.kind = Operand::Kind::kList;
      while (!take(close)) {
        result.parts.push_back(operand());
        take(",");
      }
      return result;
    }
    if (here().is("-") || here().kind == Token::Kind::kNumber) {
      const bool negative = take("-");
      result = immediate(std::string(next()));
      if (negative) result.bits = -result.bits;
      return result;
    }
    result.negated = take("!");
    if (here().kind != Token::Kind::kName) refuse("where an operand is due");
    result = named(next(), result.negated);
    if (take("|")) {
      Operand pair;
      pair.kind = Operand::Kind::kList;
      pair.parts = {result, operand()};
      return pair;
    }
    return result;
  }

  Operand named(std::string_view name, bool negated) const {
    Operand result;
    result.negated = negated;
    result.name = name;
    result.index = find_register(name);
    if (name == "_") {
      result.kind = Operand::Kind::kSink;
    } else if (result.index >= 0) {
      result.kind = Operand::Kind::kRegister;
    } else if (name == "WARP_SZ") {
      result.kind = Operand::Kind::kInteger;
      result.bits = 32;
    } else if (name[0] == '%') {
      const auto prefixes = [&](std::string_view special) { return name.starts_with(special); };
      if (std::none_of(std::begin(kSpecials), std::end(kSpecials), prefixes)) {
        throw Fault("PTX: the register " + quoted(name) + " is not known");
      }
      result.kind = Operand::Kind::kSpecial;
    } else {
      result.kind = Operand::Kind::kSymbol;
      for (const Scope& scope : scopes_) {
        const auto found = scope.names.find(result.name);
        if (found != scope.names.end()) result.name = found->second;
      }
    }
    return result;
  }

  struct Scope {
    std::map<std::string, int> registers;
    std::map<std::string, std::string> names;
  };

  std::string_view text_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  std::map<int, std::string> files_;
  std::string source_;
  const char* counted_ = text_.data();  // up to here line_ counts
  uint32_t line_ = 1;
  Function* current_ = nullptr;
  std::vector<Scope> scopes_;
};

}  // namespace

bool Type::parse(std::string_view name, Type& type) {
  if (name == "pred") {
    type = {'p', 0};
    return true;
  }
  if (name == "bf16") {
    type = {'h', 2};
    return true;
  }
  if (name.size() < 2 || std::string_view("busf").find(name[0]) == std::string_view::npos) return false;
  const std::string_view bits = name.substr(1);
  const int bytes = bits == "8" ? 1 : bits == "16" ? 2 : bits == "32" ? 4 : bits == "64" ? 8 : bits == "128" ? 16 : 0;
  if (bytes == 0) return false;
  type = {name[0], bytes};
  return true;
}

Module parse_ptx(std::string_view text) {
  Module module;
  module.text = text;
  Parser(module.text).parse(module);
  return module;
}

}  // namespace pyfold::gpu

#include "test/gpu/decode.h"

#include <algorithm>
#include <bit>

#include "test/gpu/access.h"
#include "test/gpu/fault.h"
#include "test/gpu/operations.h"

namespace pyfold::gpu {
namespace {

constexpr uint32_t kFileAlign = 64;

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

std::vector<std::string_view> parts_of(std::string_view opcode) {
  std::vector<std::string_view> parts;
  for (size_t from = 0; from <= opcode.size();) {
    const size_t dot = std::min(opcode.find('.', from), opcode.size());
    parts.push_back(opcode.substr(from, dot - from));
    from = dot + 1;
  }
  return parts;
}

bool one_of(std::string_view text, std::initializer_list<std::string_view> these) {
  return std::find(these.begin(), these.end(), text) != these.end();
}

bool is_register(const Operand& operand) { return operand.kind == Operand::Kind::kRegister; }

// Puts one kernel and all functions that it calls into one run of instructions with one register file. A function has
// its registers once, so it must not call itself.
class Decoder {
 public:
  Decoder(Kernel& kernel, const LoadedModule& loaded) : kernel_(kernel), loaded_(loaded) {
    allocate(kFileAlign);  // offset 0 says that there is none
  }

  void decode(const Function& entry) {
    place(entry);
    uint64_t offset = 0;
    for (const Variable& parameter : entry.parameters) {
      offset = round_up(offset, parameter.align);
      parameters_[parameter.name] = offset;
      kernel_.parameters.emplace_back(static_cast<uint32_t>(offset), static_cast<uint32_t>(parameter.bytes));
      offset += parameter.bytes;
    }
    kernel_.parameter_bytes = static_cast<uint32_t>(offset);
    kernel_.max_threads = entry.max_threads;
    while (!waiting_.empty()) {
      const Function* function = waiting_.front();
      waiting_.erase(waiting_.begin());
      body(*function);
    }
    for (const auto& [instruction, name] : calls_) kernel_.code[instruction].target = placed_.at(name).first;
    kernel_.shared_bytes = static_cast<uint32_t>(round_up(kernel_.shared_bytes, 16));
    for (const uint32_t at : external_shared_) {
      uint64_t* lanes = reinterpret_cast<uint64_t*>(kernel_.initial_file.data() + at);
      for (int l = 0; l < kLanes; ++l) lanes[l] += kernel_.shared_bytes;
    }
    kernel_.issued.resize(kernel_.code.size());
    kernel_.executed.resize(kernel_.code.size());
    kernel_.sectors.resize(kernel_.code.size());
  }

 private:
  struct Placed {
    const Function* function = nullptr;
    std::vector<uint32_t> registers;
    std::map<std::string, uint64_t> locals, frames;
    uint32_t first = 0;
  };

  [[noreturn]] void refuse(const std::string& why) const {
    throw Fault("'" + std::string(statement_->text) + "' " + why);
  }

  uint32_t allocate(uint64_t bytes) {
    const uint64_t align = bytes < kFileAlign ? 4 : kFileAlign;
    const uint64_t at = round_up(kernel_.initial_file.size(), align);
    kernel_.initial_file.resize(at + bytes);
    return static_cast<uint32_t>(at);
  }
  uint32_t allocate_register(const Type& type) {
    return allocate(type.kind == 'p' ? sizeof(uint32_t) : static_cast<uint64_t>(type.bytes) * kLanes);
  }

  Placed& place(const Function& function) {
    Placed& placed = placed_[function.name];
    if (placed.function != nullptr) return placed;
    placed.function = &function;
    for (const Type& type : function.registers) placed.registers.push_back(allocate_register(type));
    const auto in = [](std::map<std::string, uint64_t>& names, uint32_t& end, const Variable& variable) {
      names[variable.name] = round_up(end, std::max<uint64_t>(variable.align, 1));
      end = static_cast<uint32_t>(names[variable.name] + variable.bytes);
    };
    for (const Variable& variable : function.variables) {
      if (variable.space == Space::kLocal) in(placed.locals, kernel_.local_bytes, variable);
      if (variable.space == Space::kFrame) in(placed.frames, kernel_.frame_bytes, variable);
      if (variable.space == Space::kShared) place_shared(variable);
    }
    if (!function.entry) {
      for (const Variable& variable : function.parameters) in(placed.frames, kernel_.frame_bytes, variable);
      for (const Variable& variable : function.results) in(placed.frames, kernel_.frame_bytes, variable);
    }
    waiting_.push_back(&function);
    return placed;
  }

  void place_shared(const Variable& variable) {
    if (variable.external || shared_.count(variable.name) != 0) return;
    shared_[variable.name] = round_up(kernel_.shared_bytes, variable.align);
    kernel_.shared_bytes = static_cast<uint32_t>(shared_[variable.name] + variable.bytes);
  }

  void body(const Function& function) {
    Placed& placed = placed_.at(function.name);
    current_ = &placed;
    placed.first = static_cast<uint32_t>(kernel_.code.size());
    std::vector<uint32_t> starts;
    std::vector<std::string> label_at(function.body.size() + 1);
    for (const auto& [label, statement] : function.labels) label_at[statement] = label;
    std::string label = "start";
    int since = 0;
    bool leader = true;
    for (size_t s = 0; s < function.body.size(); ++s) {
      statement_ = &function.body[s];
      starts.push_back(static_cast<uint32_t>(kernel_.code.size()));
      if (!label_at[s].empty()) label = label_at[s], since = 0, leader = true;
      if (leader) {
        const std::string place = since == 0 ? label : label + '+' + std::to_string(since);
        kernel_.blocks.push_back({function.name, place, starts[s]});
        ++since;
      }
      instruction();
      leader = one_of(parts_of(statement_->opcode)[0], {"bra", "brx", "ret", "exit", "trap"});
    }
    // The end of a body is a return, said or not.
    starts.push_back(static_cast<uint32_t>(kernel_.code.size()));
    Instruction end;
    end.flow = function.entry ? Flow::kExit : Flow::kReturn;
    kernel_.code.push_back(end);
    for (const auto& [at, name] : branches_) {
      const auto found = function.labels.find(name);
      if (found == function.labels.end()) throw Fault("PTX: no label is named " + name);
      Instruction& branch = kernel_.code[at];
      if (branch.flow == Flow::kIndexedBranch) {
        branch.targets.push_back(starts[found->second]);
      } else {
        branch.target = starts[found->second];
      }
    }
    branches_.clear();
  }

  // --- operands

  uint32_t constant(uint64_t value, int bytes) {
    if (bytes < 8) value &= (uint64_t{1} << (8 * bytes)) - 1;
    const auto key = std::pair(bytes, value);
    const auto found = constants_.find(key);
    return found != constants_.end() ? found->second : constants_[key] = fresh_constant(value, bytes);
  }
  uint32_t fresh_constant(uint64_t value, int bytes) {
    const uint32_t at = allocate(static_cast<uint64_t>(bytes) * kLanes);
    for (int l = 0; l < kLanes; ++l)
      std::memcpy(kernel_.initial_file.data() + at + l * bytes, &value, static_cast<size_t>(bytes));
    return at;
  }
  uint32_t constant_predicate(bool value) {
    uint32_t& at = predicates_[value];
    if (at == 0) {
      at = allocate(sizeof(uint32_t));
      const uint32_t mask = value ? kAllLanes : 0;
      std::memcpy(kernel_.initial_file.data() + at, &mask, sizeof mask);
    }
    return at;
  }

  uint32_t special(const std::string& name) {
    const auto found = specials_.find(name);
    if (found != specials_.end()) return found->second;
    static const std::map<std::string, Special> kNames = {{"%tid", Special::kTid},
                                                          {"%ntid", Special::kNtid},
                                                          {"%ctaid", Special::kCtaid},
                                                          {"%nctaid", Special::kNctaid},
                                                          {"%laneid", Special::kLane},
                                                          {"%warpid", Special::kWarp},
                                                          {"%nwarpid", Special::kWarps},
                                                          {"%lanemask_eq", Special::kMaskEq},
                                                          {"%lanemask_lt", Special::kMaskLt},
                                                          {"%lanemask_le", Special::kMaskLe},
                                                          {"%lanemask_gt", Special::kMaskGt},
                                                          {"%lanemask_ge", Special::kMaskGe}};
    const size_t dot = name.find('.');
    const int axis = dot == std::string::npos ? 0 : name[dot + 1] - 'x';
    const uint32_t at = allocate(sizeof(uint32_t) * kLanes);
    kernel_.specials.push_back({kNames.at(name.substr(0, dot)), axis, at});
    return specials_[name] = at;
  }

  // The address that a symbol stands for, in its own address space, in 32 lanes.
  uint32_t symbol(const std::string& name, Space* space = nullptr) {
    const auto found = [&](Space in, uint64_t value) {
      if (space != nullptr) *space = in;
      return constant(value, 8);
    };
    const auto in = [&](const std::map<std::string, uint64_t>& names) { return names.find(name); };
    if (auto at = in(current_->locals); at != current_->locals.end()) return found(Space::kLocal, at->second);
    if (auto at = in(current_->frames); at != current_->frames.end()) return found(Space::kFrame, at->second);
    if (auto at = in(parameters_); current_->function->entry && at != parameters_.end()) {
      return found(Space::kParameter, at->second);
    }
    for (const auto* variables : {&current_->function->variables, &loaded_.module().variables}) {
      for (const Variable& variable : *variables) {
        if (variable.name != name) continue;
        if (variable.space != Space::kShared) return found(variable.space, loaded_.address(name));
        if (!variable.external) {
          place_shared(variable);
          return found(Space::kShared, shared_.at(name));
        }
        if (space != nullptr) *space = Space::kShared;
        external_shared_.push_back(fresh_constant(0, 8));
        return external_shared_.back();
      }
    }
    refuse("names " + name + ", which is not declared");
  }

  Type type_of(const Operand& operand) const {
    return current_->function->registers[static_cast<size_t>(operand.index)];
  }
  uint32_t offset_of(const Operand& operand) const { return current_->registers[static_cast<size_t>(operand.index)]; }

  // Where an instruction reads `operand` as a value of `type`; a wider register is narrowed first.
  uint32_t source(const Operand& operand, const Type& type, Instruction& instruction, size_t place) {
    const bool predicate = type.kind == 'p';
    switch (operand.kind) {
      case Operand::Kind::kRegister: {
        const Type own = type_of(operand);
        if (predicate != (own.kind == 'p')) refuse("mixes predicates and numbers");
        if (predicate) instruction.negated[place] = operand.negated;
        if (predicate || own.bytes == type.bytes) return offset_of(operand);
        if (own.bytes < type.bytes) refuse("reads a register that is too narrow");
        Instruction narrow = guarded();
        narrow.run = resize_operation(type.bytes, own.bytes, false);
        narrow.source[0] = offset_of(operand);
        narrow.destination = allocate_register(type);
        kernel_.code.push_back(narrow);
        return narrow.destination;
      }
      case Operand::Kind::kSpecial:
        if (type.bytes != 4) refuse("reads a special register as something else than 32 bits");
        return special(operand.name);
      case Operand::Kind::kInteger:
        if (predicate) return constant_predicate(operand.bits != 0);
        if (type.kind == 'f') refuse("gives an integer for a floating-point number");
        return constant(operand.bits, type.bytes);
      case Operand::Kind::kFloat32:
        if (type.bytes == 8) {
          const double wide = std::bit_cast<float>(static_cast<uint32_t>(operand.bits));
          return constant(std::bit_cast<uint64_t>(wide), 8);
        }
        return constant(operand.bits, 4);
      case Operand::Kind::kFloat64:
        if (type.bytes != 8) refuse("gives a float64 for a narrower number");
        return constant(operand.bits, 8);
      case Operand::Kind::kSymbol: {
        const uint32_t wide = symbol(operand.name);
        if (type.bytes == 8) return wide;
        Instruction narrow = guarded();
        narrow.run = resize_operation(type.bytes, 8, false);
        narrow.source[0] = wide;
        narrow.destination = allocate_register(type);
        kernel_.code.push_back(narrow);
        return narrow.destination;
      }
      default:
        refuse("has an operand that the simulator does not know");
    }
  }

  // Where an instruction leaves a value of `type`; `after` gets the copy into a wider register, if it is one.
  uint32_t destination(const Operand& operand, const Type& type, std::vector<Instruction>& after) {
    if (operand.kind == Operand::Kind::kSink) return allocate_register(type);
    if (!is_register(operand)) refuse("writes to what is no register");
    const Type own = type_of(operand);
    if ((type.kind == 'p') != (own.kind == 'p')) refuse("mixes predicates and numbers");
    if (type.kind == 'p' || own.bytes == type.bytes) return offset_of(operand);
    if (own.bytes < type.bytes) refuse("writes a register that is too narrow");
    Instruction widen = guarded();
    widen.run = resize_operation(own.bytes, type.bytes, type.kind == 's');
    widen.source[0] = allocate_register(type);
    widen.destination = offset_of(operand);
    after.push_back(widen);
    return widen.source[0];
  }

  Instruction guarded() const {
    Instruction result;
    if (statement_->guard >= 0) {
      result.guard = current_->registers[static_cast<size_t>(statement_->guard)];
      result.guard_negated = statement_->guard_negated;
    }
    return result;
  }

  void finish(Instruction& instruction, const std::vector<Instruction>& after) {
    instruction.statement = statement_;
    kernel_.code.push_back(instruction);
    kernel_.code.insert(kernel_.code.end(), after.begin(), after.end());
  }

  // --- instructions

  void instruction() {
    const std::string_view opcode = statement_->opcode;
    const std::vector<std::string_view> parts = parts_of(opcode);
    const std::string_view first = parts[0];
    if (one_of(first, {"ld", "st"})) return memory(parts);
    if (one_of(first, {"bra", "brx", "call", "ret", "exit", "trap"})) return flow(first);
    if (one_of(first, {"bar", "barrier"}) && parts[1] != "warp") return barrier(parts);
    const auto is_list = [](const Operand& operand) { return operand.kind == Operand::Kind::kList; };
    if (first == "mov" && std::any_of(statement_->operands.begin(), statement_->operands.end(), is_list)) {
      return move_list();
    }
    compute(opcode);
  }

  void compute(std::string_view opcode) {
    const Operation* operation = find_operation(opcode);
    if (operation == nullptr) refuse(reason_to_refuse(opcode));
    const std::vector<Operand>& operands = statement_->operands;
    if (operands.size() != operation->types.size()) refuse("has another number of operands than the simulator knows");
    Instruction result = guarded();
    std::vector<Instruction> after;
    result.run = operation->run;
    result.flow = operation->flow;
    size_t first_source = 1;
    if (opcode == "bar.warp.sync") {
      first_source = 0;
    } else if (operands[0].kind == Operand::Kind::kList) {
      result.destination = destination(operands[0].parts[0], operation->types[0], after);
      result.second = destination(operands[0].parts[1], {'p', 0}, after);
    } else {
      result.destination = destination(operands[0], operation->types[0], after);
    }
    for (size_t k = first_source; k < operands.size(); ++k) {
      result.source[k - first_source] = source(operands[k], operation->types[k], result, k - first_source);
    }
    // What lanes do together waits for the lanes that its last operand names.
    if (result.flow == Flow::kTogether) result.target = result.source[operands.size() - 1 - first_source];
    finish(result, after);
  }

  void move_list() {
    const Operand &to = statement_->operands[0], &from = statement_->operands[1];
    Instruction result = guarded();
    const bool packs = from.kind == Operand::Kind::kList;
    const Operand& list = packs ? from : to;
    const int count = static_cast<int>(list.parts.size());
    Type whole;
    if (!Type::parse(parts_of(statement_->opcode)[1], whole)) refuse(reason_to_refuse(statement_->opcode));
    const Type part = {'b', whole.bytes / count};
    std::vector<Instruction> after;
    for (size_t k = 0; k < list.parts.size(); ++k) {
      result.vector[k] = packs ? source(list.parts[k], part, result, k) : destination(list.parts[k], part, after);
    }
    if (packs) {
      result.destination = destination(to, whole, after);
    } else {
      result.source[0] = source(from, whole, result, 0);
    }
    result.run = packs ? pack_operation(part.bytes, count) : unpack_operation(part.bytes, count);
    if (result.run == nullptr) refuse(reason_to_refuse(statement_->opcode));
    finish(result, after);
  }

  void memory(const std::vector<std::string_view>& parts) {
    Instruction result = guarded();
    result.store = parts[0] == "st";
    result.run = result.store ? &store : &load;
    Type type;
    bool parameter = false;
    for (size_t k = 1; k < parts.size(); ++k) {
      const std::string_view part = parts[k];
      if (part == "global") {
        result.space = Space::kGlobal;
      } else if (part == "const") {
        result.space = Space::kConst;
      } else if (part == "shared" || part == "shared::cta") {
        result.space = Space::kShared;
      } else if (part == "local") {
        result.space = Space::kLocal;
      } else if (part == "param") {
        parameter = true;
      } else if (part == "nc") {
        result.constant = true;
      } else if (one_of(part, {"v2", "v4", "v8"})) {
        result.elements = static_cast<uint8_t>(part[1] - '0');
      } else if (!Type::parse(part, type) &&
                 !one_of(part, {"volatile", "weak", "ca", "cg", "cs", "lu", "cv", "wb", "wt"}) &&
                 !part.starts_with("L1::") && !part.starts_with("L2::")) {
        refuse(reason_to_refuse(statement_->opcode));
      }
    }
    if (type.bytes == 0 || type.bytes > 8) refuse(reason_to_refuse(statement_->opcode));
    result.bytes = static_cast<uint8_t>(type.bytes);
    result.extended_by_sign = type.kind == 's';
    address(statement_->operands[result.store ? 0 : 1], parameter, result);
    values(statement_->operands[result.store ? 1 : 0], type, result);
    finish(result, {});
  }

  void address(const Operand& operand, bool parameter, Instruction& result) {
    if (operand.kind != Operand::Kind::kMemory) refuse("has no address");
    const Operand& base = operand.parts[0];
    result.offset = static_cast<int64_t>(operand.bits);
    if (parameter) result.space = current_->function->entry ? Space::kParameter : Space::kFrame;
    if (base.kind == Operand::Kind::kSymbol) {
      Space space;
      result.source[0] = symbol(base.name, &space);
      if (parameter || result.space == Space::kGeneric) result.space = space;
    } else if (base.kind == Operand::Kind::kInteger) {
      result.source[0] = constant(base.bits, 8);
    } else if (is_register(base)) {
      result.source[0] = offset_of(base);
      result.address_bytes = static_cast<uint8_t>(type_of(base).bytes);
    } else {
      refuse("has an address that the simulator does not know");
    }
  }

  void values(const Operand& operand, const Type& type, Instruction& result) {
    const bool list = operand.kind == Operand::Kind::kList;
    const std::vector<Operand> parts = list ? operand.parts : std::vector<Operand>{operand};
    if (parts.size() != result.elements) refuse("has another number of values than its opcode says");
    for (size_t k = 0; k < parts.size(); ++k) {
      uint8_t width = static_cast<uint8_t>(type.bytes);
      if (is_register(parts[k])) {
        width = static_cast<uint8_t>(type_of(parts[k]).bytes);
        result.vector[k] = offset_of(parts[k]);
      } else if (result.store) {
        result.vector[k] = source(parts[k], type, result, 0);
      } else {
        result.vector[k] = allocate_register(type);
      }
      if (width < type.bytes || (result.width != 0 && width != result.width)) refuse("mixes registers of other widths");
      result.width = width;
    }
  }

  void flow(std::string_view first) {
    const std::vector<Operand>& operands = statement_->operands;
    Instruction result = guarded();
    const uint32_t here = static_cast<uint32_t>(kernel_.code.size());
    if (first == "bra") {
      result.flow = Flow::kBranch;
      branches_.emplace_back(here, operands[0].name);
    } else if (first == "brx") {
      result.flow = Flow::kIndexedBranch;
      result.source[0] = source(operands[0], {'u', 4}, result, 0);
      for (const std::string& target : current_->function->branch_targets.at(operands[1].name)) {
        branches_.emplace_back(static_cast<uint32_t>(kernel_.code.size()), target);
      }
    } else if (first == "call") {
      result.flow = Flow::kCall;
      call(operands, result);
    } else if (first == "trap") {
      result.flow = Flow::kTrap;
    } else {
      result.flow = first == "exit" || current_->function->entry ? Flow::kExit : Flow::kReturn;
    }
    finish(result, {});
  }

  // call (results), function, (arguments)
  void call(const std::vector<Operand>& operands, Instruction& result) {
    size_t at = 0;
    std::vector<Operand> results, arguments;
    if (operands[at].kind == Operand::Kind::kList) results = operands[at++].parts;
    const std::string& name = operands[at++].name;
    if (at < operands.size()) arguments = operands[at].parts;
    const auto function = loaded_.module().functions.find(name);
    if (function == loaded_.module().functions.end()) refuse("calls what the module does not hold");
    const std::map<std::string, uint64_t> own = current_->frames;
    const std::string caller = current_->function->name;
    const Placed& callee = place(function->second);
    current_ = &placed_.at(caller);
    const auto copies = [&](const std::vector<Operand>& ours, const std::vector<Variable>& theirs, bool into) {
      if (ours.size() != theirs.size()) refuse("passes another number of values than the function has");
      std::vector<FrameCopy> list;
      for (size_t k = 0; k < ours.size(); ++k) {
        const auto here = own.find(ours[k].name);
        if (here == own.end()) refuse("passes what is no variable of a call");
        const uint32_t mine = static_cast<uint32_t>(here->second);
        const uint32_t other = static_cast<uint32_t>(callee.frames.at(theirs[k].name));
        list.push_back({into ? mine : other, into ? other : mine, static_cast<uint32_t>(theirs[k].bytes)});
      }
      return list;
    };
    result.arguments = copies(arguments, function->second.parameters, true);
    result.results = copies(results, function->second.results, false);
    calls_.emplace_back(static_cast<uint32_t>(kernel_.code.size()), name);
  }

  void barrier(const std::vector<std::string_view>& parts) {
    if (std::find(parts.begin(), parts.end(), "sync") == parts.end() || statement_->operands.size() != 1 ||
        statement_->operands[0].kind != Operand::Kind::kInteger) {
      refuse("is not known to the simulator: barriers of a whole block are");
    }
    Instruction result = guarded();
    result.flow = Flow::kBarrier;
    result.offset = static_cast<int64_t>(statement_->operands[0].bits);
    finish(result, {});
  }

  Kernel& kernel_;
  const LoadedModule& loaded_;
  std::map<std::string, Placed> placed_;
  std::vector<const Function*> waiting_;
  Placed* current_ = nullptr;
  const Statement* statement_ = nullptr;
  std::map<std::string, uint64_t> parameters_, shared_;
  std::map<std::pair<int, uint64_t>, uint32_t> constants_;
  uint32_t predicates_[2] = {0, 0};
  std::map<std::string, uint32_t> specials_;
  std::vector<uint32_t> external_shared_;
  std::vector<std::pair<uint32_t, std::string>> branches_, calls_;
};

}  // namespace

LoadedModule::LoadedModule(std::string_view text) : module_(parse_ptx(text)) {
  for (const Variable& variable : module_.variables) {
    if (variable.space == Space::kShared) continue;
    std::vector<unsigned char>& memory = variables_[variable.name];
    memory.resize(variable.bytes + variable.align);
    unsigned char* aligned = memory.data();
    aligned += round_up(reinterpret_cast<uint64_t>(aligned), variable.align) - reinterpret_cast<uint64_t>(aligned);
    std::copy(variable.initial.begin(), variable.initial.end(), aligned);
    addresses_[variable.name] = reinterpret_cast<uint64_t>(aligned);
    Allocations::all().add(aligned, variable.bytes);
  }
}

LoadedModule::~LoadedModule() {
  for (const auto& [name, address] : addresses_) Allocations::all().remove(reinterpret_cast<void*>(address));
}

uint64_t LoadedModule::address(const std::string& variable) const { return addresses_.at(variable); }

std::vector<std::string> LoadedModule::entries() const {
  std::vector<std::string> names;
  for (const auto& [name, function] : module_.functions) {
    if (function.entry) names.push_back(name);
  }
  return names;
}

Kernel& LoadedModule::kernel(const std::string& name) {
  std::unique_ptr<Kernel>& kernel = kernels_[name];
  if (kernel) return *kernel;
  const auto function = module_.functions.find(name);
  if (function == module_.functions.end() || !function->second.entry) throw Fault("no kernel is named " + name);
  auto decoded = std::make_unique<Kernel>();
  decoded->name = name;
  decoded->module_text = module_.text;
  Decoder(*decoded, *this).decode(function->second);
  kernel = std::move(decoded);
  return *kernel;
}

}  // namespace pyfold::gpu

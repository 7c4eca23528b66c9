#include "test/gpu/report.h"

#include <algorithm>
#include <map>

#include "test/gpu/demangle.h"

namespace pyfold::gpu {
namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

// An object from pairs that are JSON already.
class Object {
 public:
  Object& add(const std::string& name, const std::string& json) {
    text_ += (text_.empty() ? "" : ", ") + quoted(name) + ": " + json;
    return *this;
  }
  Object& add(const std::string& name, uint64_t value) { return add(name, std::to_string(value)); }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

struct Memory {
  uint64_t requests = 0, sectors = 0, distinct = 0;
  int widest = 0;

  std::string text() const {
    return Object()
        .add("requests", requests)
        .add("sectors", sectors)
        .add("distinct", distinct)
        .add("widest", static_cast<uint64_t>(widest))
        .text();
  }
};

std::string blocks_of(const Kernel& kernel) {
  std::string text;
  for (const BasicBlock& block : kernel.blocks) {
    // A block that holds nothing but what the simulator added was never the compiler's.
    size_t at = block.first;
    while (at < kernel.code.size() && kernel.code[at].statement == nullptr) ++at;
    if (at == kernel.code.size()) continue;
    uint64_t entered = 0;
    // The first instruction may be guarded; what follows it up to the next block tells as well.
    const size_t next = static_cast<size_t>(&block - kernel.blocks.data()) + 1;
    const size_t end = next < kernel.blocks.size() && kernel.blocks[next].first > block.first
                           ? kernel.blocks[next].first
                           : kernel.code.size();
    for (size_t i = at; i < end; ++i) entered = std::max(entered, kernel.executed[i]);
    Object one;
    one.add("function", quoted(demangled(block.function))).add("label", quoted(block.label));
    one.add("source", quoted(kernel.code[at].statement->source)).add("entered", entered);
    text += (text.empty() ? "" : ", ") + one.text();
  }
  return "[" + text + "]";
}

std::string lines_of(const Kernel& kernel) {
  Object lines;
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    const Statement* statement = kernel.code[i].statement;
    if (statement != nullptr && kernel.executed[i] != 0) lines.add(std::to_string(statement->line), kernel.executed[i]);
  }
  return lines.text();
}

std::string one_kernel(const Kernel& kernel) {
  uint64_t instructions = 0;
  std::map<std::string, uint64_t> opcodes;
  Memory loads, stores;
  loads.distinct = kernel.distinct_loads.size();
  stores.distinct = kernel.distinct_stores.size();
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    const Instruction& instruction = kernel.code[i];
    if (instruction.statement == nullptr || kernel.executed[i] == 0) continue;
    instructions += kernel.executed[i];
    opcodes[std::string(instruction.statement->opcode)] += kernel.executed[i];
    if (instruction.space != Space::kGlobal || instruction.bytes == 0) continue;
    Memory& memory = instruction.store ? stores : loads;
    memory.requests += kernel.issued[i];
    memory.sectors += kernel.sectors[i];
    memory.widest = std::max(memory.widest, instruction.bytes * instruction.elements);
  }
  Object by_opcode;
  for (const auto& [opcode, count] : opcodes) by_opcode.add(opcode, count);
  Object result;
  result.add("kernel", quoted(demangled(kernel.name))).add("symbol", quoted(kernel.name));
  result.add("launches", kernel.launches).add("threads", kernel.threads);
  result.add("block threads", kernel.block_threads).add("block shared", kernel.block_shared);
  result.add("instructions", instructions).add("opcodes", by_opcode.text());
  result.add("loads", loads.text()).add("stores", stores.text());
  result.add("lines", lines_of(kernel)).add("blocks", blocks_of(kernel));
  return result.text();
}

}  // namespace

std::string report(const std::vector<const Kernel*>& kernels) {
  std::string text;
  for (const Kernel* kernel : kernels) text += (text.empty() ? "" : ",\n") + one_kernel(*kernel);
  return "[" + text + "]\n";
}

}  // namespace pyfold::gpu

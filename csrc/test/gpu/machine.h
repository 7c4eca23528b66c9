#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "test/gpu/fault.h"
#include "test/gpu/memory.h"
#include "test/gpu/ptx.h"

namespace pyfold::gpu {

// Kernels decoded for execution, and the machine that executes them: the 32 lanes of a warp in step. A register is an
// array of 32 values, or a mask of 32 bits for a predicate; it lies at a byte offset in the warp's register file, as do
// constants and special registers, so that every operand of an instruction is an offset.

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xFFFF'FFFF;

class Warp;
struct Instruction;
using Run = void (*)(Warp&, const Instruction&);

enum class Flow { kCompute, kBranch, kIndexedBranch, kCall, kReturn, kExit, kBarrier, kTogether, kTrap };

// Bytes that travel between a caller and a function that it calls, in a lane's frame memory.
struct FrameCopy {
  uint32_t from, to, bytes;
};

struct Instruction {
  Run run = nullptr;
  Flow flow = Flow::kCompute;
  uint32_t destination = 0, second = 0;  // second: of setp p|q and shfl d|p
  std::array<uint32_t, 4> source{};
  uint32_t guard = 0;  // an offset; 0 is none
  bool guard_negated = false;
  std::array<bool, 4> negated{};  // of predicates
  // Branches and calls.
  uint32_t target = 0;
  std::vector<uint32_t> targets;
  std::vector<FrameCopy> arguments, results;
  // Memory: `elements` of `bytes` each, into or from registers of `widths` bytes.
  Space space = Space::kGeneric;
  uint8_t bytes = 0, elements = 1, address_bytes = 8, width = 0;
  bool extended_by_sign = false, constant = false, store = false;
  int64_t offset = 0;
  std::array<uint32_t, 8> vector{};

  const Statement* statement = nullptr;
};

enum class Special { kTid, kNtid, kCtaid, kNctaid, kLane, kWarp, kWarps, kMaskEq, kMaskLt, kMaskLe, kMaskGt, kMaskGe };
struct SpecialRegister {
  Special special;
  int axis;
  uint32_t offset;
};

// A run of instructions that only its first can enter.
struct BasicBlock {
  std::string function, label;
  uint32_t first = 0;
};

// An entry of a module with everything that it calls.
struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<BasicBlock> blocks;
  std::vector<SpecialRegister> specials;
  std::vector<unsigned char> initial_file;                // constants
  std::vector<std::pair<uint32_t, uint32_t>> parameters;  // the offset and bytes of each
  uint32_t parameter_bytes = 0, local_bytes = 0, frame_bytes = 0, shared_bytes = 0;
  int max_threads = 0;
  std::string_view module_text;
  // What all launches have executed, of each instruction: by warps with any lane whose guard holds, and by threads,
  // whether their guard holds or not, because it takes its time either way.
  std::vector<uint64_t> issued, executed;
  // Of accesses to global memory: 32-byte sectors that the warps' requests touched.
  std::vector<uint64_t> sectors;
  // Those of all launches' loads and stores, each counted once.
  std::unordered_set<uint64_t> distinct_loads, distinct_stores;
  uint64_t launches = 0, threads = 0;
  // Of the largest launch: threads of a block, and its shared memory, the kernel's own and the launch's.
  uint64_t block_threads = 0, block_shared = 0;
};

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return static_cast<uint64_t>(x) * y * z; }
};

struct Launch {
  Kernel* kernel = nullptr;
  Dim3 grid, block;
  uint32_t dynamic_shared = 0;
  std::vector<unsigned char> parameters;
};

struct Options {
  bool races = true;
  bool sectors = false;
  // The blocks to execute, by their number in the grid; empty for all.
  std::vector<uint64_t> blocks;
};

// Executes it now. Throws Fault with the kernel, block, thread and instruction.
void execute(const Launch& launch, const Options& options);

// One block on the machine, as its warps see it.
struct BlockState {
  const Launch* launch = nullptr;
  const Options* options = nullptr;
  GlobalCells* global_cells = nullptr;
  uint32_t ordinal = 0;  // among those that are executed
  Dim3 index;
  uint32_t threads = 0, epoch = 0;
  std::vector<unsigned char> shared;
  std::vector<Cell> shared_cells;
};

class Warp {
 public:
  Warp(const Kernel& kernel, int index);

  void start(BlockState& block);
  // Runs until every lane is done or waits at a barrier.
  void run();
  bool done() const { return groups_.empty(); }
  // The number of the barrier that it waits at.
  int64_t barrier() const { return done() ? -1 : kernel->code[groups_[0].pc].offset; }
  void pass_barrier();
  [[noreturn]] void barrier_fault(const char* what) const { rethrow(Fault(what), groups_[0].pc, 0); }

  // For the instructions.
  template <class T>
  T* lanes(uint32_t offset) {
    return reinterpret_cast<T*>(file_.get() + offset);
  }
  uint32_t& predicate(uint32_t offset) { return *reinterpret_cast<uint32_t*>(file_.get() + offset); }
  template <class T>
  void write(uint32_t offset, const T* values) {
    T* to = lanes<T>(offset);
    if (mask == kAllLanes) {
      std::memcpy(to, values, sizeof(T) * kLanes);
    } else {
      for (int l = 0; l < kLanes; ++l) to[l] = mask >> l & 1 ? values[l] : to[l];
    }
  }
  void write_predicate(uint32_t offset, uint32_t value) {
    uint32_t& to = predicate(offset);
    to = (to & ~mask) | (value & mask);
  }
  // The memory behind a lane's access, checked.
  unsigned char* access(int lane, Space space, uint64_t address, const Instruction& instruction);
  Accessor accessor(int lane) const;
  unsigned char* frame(int lane) { return frame_.data() + static_cast<size_t>(lane) * frame_bytes_; }

  uint32_t mask = 0;   // lanes that execute this instruction
  int lane = -1;       // the one that touches memory, for what is said of a fault
  uint32_t carry = 0;  // of add.cc and its like
  uint32_t warp_epoch = 0;
  BlockState* block = nullptr;
  Kernel* kernel = nullptr;

 private:
  // Lanes that stand at the same instruction, called from the same place.
  struct Group {
    uint32_t pc, lanes;
    int frame;
    bool waits;
  };
  struct Frame {
    uint32_t call;
    int parent, depth;
  };
  bool choose(size_t& chosen) const;
  void merge();
  void step(size_t group);
  bool turn(size_t group, const Instruction& instruction);
  void split(size_t group, uint32_t taken, uint32_t target);
  void indexed_branch(size_t group, const Instruction& instruction);
  void call(size_t group, const Instruction& instruction);
  void leave(size_t group, bool returns);
  bool together(size_t group, const Instruction& instruction);
  [[noreturn]] void rethrow(const std::exception& error, uint32_t pc, int lane) const;

  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free> file_;
  std::vector<unsigned char> local_, frame_;
  size_t frame_bytes_, local_bytes_;
  int index_;
  uint32_t existing_ = 0;
  std::vector<Group> groups_;
  std::vector<Frame> frames_;
};

}  // namespace pyfold::gpu

#include "test/gpu/machine.h"

#include <algorithm>
#include <cstdlib>

#include "test/gpu/demangle.h"
#include "test/gpu/fault.h"

namespace pyfold::gpu {
namespace {

uint32_t axis_of(const Dim3& value, int axis) { return axis == 0 ? value.x : axis == 1 ? value.y : value.z; }

Dim3 place_in(const Dim3& size, uint64_t number) {
  return {static_cast<uint32_t>(number % size.x), static_cast<uint32_t>(number / size.x % size.y),
          static_cast<uint32_t>(number / size.x / size.y)};
}

std::string text_of(const Dim3& value) {
  return "(" + std::to_string(value.x) + ", " + std::to_string(value.y) + ", " + std::to_string(value.z) + ")";
}

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (!space) line += c;
    if (space && !line.empty() && line.back() != ' ') line += ' ';
  }
  return line;
}

uint32_t lanes_of(uint32_t threads, int warp) {
  const uint32_t left = threads - static_cast<uint32_t>(warp) * kLanes;
  return left >= kLanes ? kAllLanes : (uint32_t{1} << left) - 1;
}

int first_lane(uint32_t lanes) { return lanes == 0 ? 0 : __builtin_ctz(lanes); }

}  // namespace

Warp::Warp(const Kernel& kernel, int index)
    : local_(static_cast<size_t>(kernel.local_bytes) * kLanes),
      frame_(static_cast<size_t>(kernel.frame_bytes) * kLanes),
      frame_bytes_(kernel.frame_bytes),
      local_bytes_(kernel.local_bytes),
      index_(index) {
  const size_t bytes = (kernel.initial_file.size() + 63) / 64 * 64;
  file_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, bytes)));
  std::copy(kernel.initial_file.begin(), kernel.initial_file.end(), file_.get());
}

void Warp::start(BlockState& of) {
  block = &of;
  kernel = of.launch->kernel;
  existing_ = lanes_of(of.threads, index_);
  warp_epoch = carry = 0;
  frames_.assign(1, {0, 0, 0});
  groups_.assign(1, {0, existing_, 0, false});
  for (const SpecialRegister& special : kernel->specials) {
    uint32_t* values = lanes<uint32_t>(special.offset);
    for (uint32_t l = 0; l < kLanes; ++l) {
      const uint64_t thread = static_cast<uint64_t>(index_) * kLanes + l;
      const auto value = [&]() -> uint32_t {
        switch (special.special) {
          case Special::kTid:
            return axis_of(place_in(of.launch->block, thread), special.axis);
          case Special::kNtid:
            return axis_of(of.launch->block, special.axis);
          case Special::kCtaid:
            return axis_of(of.index, special.axis);
          case Special::kNctaid:
            return axis_of(of.launch->grid, special.axis);
          case Special::kLane:
            return l;
          case Special::kWarp:
            return static_cast<uint32_t>(index_);
          case Special::kWarps:
            return (of.threads + kLanes - 1) / kLanes;
          case Special::kMaskEq:
            return 1u << l;
          case Special::kMaskLt:
            return (1u << l) - 1;
          case Special::kMaskLe:
            return (2u << l) - 1;
          case Special::kMaskGt:
            return ~((2u << l) - 1);
          default:
            return ~((1u << l) - 1);
        }
      };
      values[l] = value();
    }
  }
}

Accessor Warp::accessor(int lane) const {
  Accessor result;
  result.thread = 1 + block->ordinal * block->threads + static_cast<uint32_t>(index_ * kLanes + lane);
  result.threads_per_block = block->threads;
  result.block_epoch = block->epoch;
  result.warp_epoch = warp_epoch;
  return result;
}

void Warp::rethrow(const std::exception& error, uint32_t pc, int lane) const {
  const Statement* statement = kernel->code[pc].statement;
  std::string where = "'" + (statement == nullptr ? "the end" : one_line(statement->text)) + "'";
  if (statement != nullptr && !statement->source.empty()) where += " of " + statement->source;
  const Dim3 thread =
      place_in(block->launch->block, static_cast<uint64_t>(index_) * kLanes + static_cast<uint64_t>(lane));
  throw Fault(demangled(kernel->name) + ", block " + text_of(block->index) + ", thread " + text_of(thread) + ": " +
              where + " " + error.what());
}

void Warp::merge() {
  for (size_t a = 0; a < groups_.size(); ++a) {
    for (size_t b = groups_.size() - 1; b > a; --b) {
      if (groups_[a].pc != groups_[b].pc || groups_[a].frame != groups_[b].frame) continue;
      groups_[a].lanes |= groups_[b].lanes;
      groups_[a].waits = false;
      groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(b));
    }
  }
}

// Those deepest in calls go first, then those furthest behind, so that lanes meet again where their paths do.
bool Warp::choose(size_t& chosen) const {
  bool found = false;
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (groups_[g].waits) continue;
    const auto rank = [&](const Group& group) {
      return std::pair(-frames_[static_cast<size_t>(group.frame)].depth, group.pc);
    };
    if (!found || rank(groups_[g]) < rank(groups_[chosen])) chosen = g;
    found = true;
  }
  return found;
}

void Warp::run() {
  size_t chosen = 0;
  while (choose(chosen)) {
    step(chosen);
    if (groups_.size() > 1) merge();
  }
  for (const Group& group : groups_) {
    const Instruction& instruction = kernel->code[group.pc];
    if (group.lanes == existing_ && instruction.flow == Flow::kBarrier) continue;
    const int reached = __builtin_popcount(group.lanes), all = __builtin_popcount(existing_);
    const std::string who = std::to_string(reached) + " of " + std::to_string(all) + " lanes";
    rethrow(Fault("is reached by " + who + " of the warp; the others never come"), group.pc, first_lane(group.lanes));
  }
}

// Runs one group until it ends, waits, or may meet another or fall behind it.
void Warp::step(size_t g) {
  const Instruction* code = kernel->code.data();
  uint32_t meets = ~uint32_t{0};
  for (size_t other = 0; other < groups_.size(); ++other) {
    if (other != g && groups_[other].frame == groups_[g].frame) meets = std::min(meets, groups_[other].pc);
  }
  uint32_t pc = groups_[g].pc;
  const uint32_t lanes = groups_[g].lanes;
  const uint64_t width = static_cast<uint64_t>(__builtin_popcount(lanes));
  try {
    do {
      const Instruction& instruction = code[pc];
      mask = lanes;
      if (instruction.guard != 0) {
        const uint32_t guard = predicate(instruction.guard);
        mask &= instruction.guard_negated ? ~guard : guard;
      }
      kernel->issued[pc] += mask != 0;
      kernel->executed[pc] += width;
      if (instruction.flow == Flow::kCompute) {
        if (mask != 0) instruction.run(*this, instruction);
        ++pc;
      } else {
        groups_[g].pc = pc;
        if (!turn(g, instruction)) return;
        pc = groups_[g].pc;
      }
    } while (pc < meets);
    groups_[g].pc = pc;
  } catch (const Fault& fault) {
    rethrow(fault, pc, lane >= 0 ? lane : first_lane(mask));
  }
}

// Everything that is not the next instruction. False where the group split, ended or waits.
bool Warp::turn(size_t g, const Instruction& instruction) {
  Group& group = groups_[g];
  switch (instruction.flow) {
    case Flow::kBranch:
      if (mask == group.lanes || mask == 0) {
        group.pc = mask == 0 ? group.pc + 1 : instruction.target;
        return true;
      }
      split(g, mask, instruction.target);
      ++groups_[g].pc;
      return false;
    case Flow::kIndexedBranch:
      indexed_branch(g, instruction);
      return false;
    case Flow::kCall:
      if (mask == 0) {
        ++group.pc;
        return true;
      }
      call(g, instruction);
      return false;
    case Flow::kReturn:
    case Flow::kExit:
      leave(g, instruction.flow == Flow::kReturn);
      return false;
    case Flow::kTogether:
      return together(g, instruction);
    case Flow::kBarrier:
      if (mask != group.lanes) throw Fault("is a barrier under a guard that not all lanes share");
      group.waits = true;
      return false;
    default:
      if (mask != 0) throw Fault("stops the kernel");
      ++group.pc;
      return true;
  }
}

void Warp::split(size_t g, uint32_t taken, uint32_t target) {
  groups_[g].lanes &= ~taken;
  groups_.push_back({target, taken, groups_[g].frame, false});
}

void Warp::indexed_branch(size_t g, const Instruction& instruction) {
  const uint32_t* index = lanes<uint32_t>(instruction.source[0]);
  for (uint32_t left = mask; left != 0;) {
    const uint32_t one = index[__builtin_ctz(left)];
    if (one >= instruction.targets.size()) throw Fault("branches beyond its list of targets");
    uint32_t same = 0;
    for (int l = 0; l < kLanes; ++l) same |= static_cast<uint32_t>(index[l] == one) << l;
    split(g, left & same, instruction.targets[one]);
    left &= ~same;
  }
  if (groups_[g].lanes == 0) {
    groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(g));
  } else {
    ++groups_[g].pc;
  }
}

void Warp::call(size_t g, const Instruction& instruction) {
  const uint32_t here = groups_[g].pc;
  const int outer = groups_[g].frame;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    unsigned char* memory = frame(__builtin_ctz(left));
    for (const FrameCopy& copy : instruction.arguments) std::memcpy(memory + copy.to, memory + copy.from, copy.bytes);
  }
  frames_.push_back({here, outer, frames_[static_cast<size_t>(outer)].depth + 1});
  const Group callee{instruction.target, mask, static_cast<int>(frames_.size() - 1), false};
  if (mask == groups_[g].lanes) {
    groups_[g] = callee;
  } else {
    groups_[g].lanes &= ~mask;
    ++groups_[g].pc;
    groups_.push_back(callee);
  }
}

void Warp::leave(size_t g, bool returns) {
  const uint32_t left = groups_[g].lanes & ~mask;
  const Frame from = frames_[static_cast<size_t>(groups_[g].frame)];
  if (returns && mask != 0) {
    for (uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
      unsigned char* memory = frame(__builtin_ctz(lanes));
      for (const FrameCopy& copy : kernel->code[from.call].results) {
        std::memcpy(memory + copy.to, memory + copy.from, copy.bytes);
      }
    }
    groups_.push_back({from.call + 1, mask, from.parent, false});
  }
  groups_[g].lanes = left;
  ++groups_[g].pc;
  if (left == 0) groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(g));
  // Nobody is inside a call any more.
  if (std::all_of(groups_.begin(), groups_.end(), [](const Group& group) { return group.frame == 0; })) {
    frames_.resize(1);
  }
}

// A vote, a shuffle, a reduction, or a barrier of the warp: only with all lanes that it names.
bool Warp::together(size_t g, const Instruction& instruction) {
  Group& group = groups_[g];
  if (mask != 0) {
    const uint32_t* members = lanes<uint32_t>(instruction.target);
    const uint32_t named = members[first_lane(mask)];
    for (int l = 0; l < kLanes; ++l) {
      if (mask >> l & 1 && members[l] != named) throw Fault("is given another set of lanes by each lane");
    }
    if ((mask & ~named) != 0) throw Fault("is executed by lanes that its own set of lanes leaves out");
    if (mask != named) {
      group.waits = true;
      return false;
    }
    instruction.run(*this, instruction);
  }
  ++group.pc;
  return true;
}

void Warp::pass_barrier() {
  for (Group& group : groups_) {
    group.waits = false;
    ++group.pc;
  }
}

namespace {

// The warps of the kernels that ran last: their register files are large, and hold constants already.
std::vector<Warp>& warps_of(const Kernel& kernel, uint32_t threads) {
  constexpr size_t kKept = 8;
  static std::vector<std::pair<const Kernel*, std::vector<Warp>>> kept;
  const auto same = [&](const auto& one) { return one.first == &kernel; };
  auto found = std::find_if(kept.begin(), kept.end(), same);
  if (found == kept.end()) {
    if (kept.size() == kKept) kept.erase(kept.begin());
    kept.emplace_back(&kernel, std::vector<Warp>{});
    found = kept.end() - 1;
  }
  std::rotate(found, found + 1, kept.end());
  std::vector<Warp>& warps = kept.back().second;
  const size_t count = (threads + kLanes - 1) / kLanes;
  while (warps.size() < count) warps.emplace_back(kernel, static_cast<int>(warps.size()));
  while (warps.size() > count) warps.pop_back();
  return warps;
}

void run_block(BlockState& block, std::vector<Warp>& warps) {
  for (Warp& warp : warps) warp.start(block);
  const auto done = [](const Warp& warp) { return warp.done(); };
  while (!std::all_of(warps.begin(), warps.end(), done)) {
    for (Warp& warp : warps) {
      if (!warp.done()) warp.run();
    }
    if (std::all_of(warps.begin(), warps.end(), done)) return;
    const bool some_done = std::any_of(warps.begin(), warps.end(), done);
    const int64_t barrier = warps[0].barrier();
    for (Warp& warp : warps) {
      if (!warp.done() && some_done) warp.barrier_fault("is a barrier that other warps of the block never reach");
      if (warp.barrier() != barrier) warp.barrier_fault("is another barrier than other warps of the block wait at");
      warp.pass_barrier();
    }
    ++block.epoch;
  }
}

}  // namespace

void execute(const Launch& launch, const Options& options) {
  Kernel& kernel = *launch.kernel;
  static GlobalCells cells;
  struct Clear {
    ~Clear() { cells.clear(); }
  } clear;
  BlockState block;
  block.launch = &launch;
  block.options = &options;
  block.global_cells = &cells;
  block.threads = static_cast<uint32_t>(launch.block.count());
  std::vector<Warp>& warps = warps_of(kernel, block.threads);
  const uint64_t blocks = options.blocks.empty() ? launch.grid.count() : options.blocks.size();
  if (blocks * block.threads >= ~uint32_t{0}) throw Fault("more threads than a simulated launch can tell apart");
  Allocations::all().refresh();
  ++kernel.launches;
  kernel.threads += blocks * block.threads;
  kernel.block_threads = std::max<uint64_t>(kernel.block_threads, block.threads);
  kernel.block_shared = std::max<uint64_t>(kernel.block_shared, kernel.shared_bytes + launch.dynamic_shared);
  for (uint64_t b = 0; b < blocks; ++b) {
    if (!options.blocks.empty() && options.blocks[b] >= launch.grid.count()) continue;
    block.ordinal = static_cast<uint32_t>(b);
    block.index = place_in(launch.grid, options.blocks.empty() ? b : options.blocks[b]);
    block.epoch = 0;
    block.shared.assign(kernel.shared_bytes + launch.dynamic_shared, 0);
    block.shared_cells.assign(block.shared.size(), Cell{});
    run_block(block, warps);
  }
}

}  // namespace pyfold::gpu

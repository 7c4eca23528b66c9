#include "test/gpu/access.h"

#include <algorithm>
#include <string>

#include "test/gpu/fault.h"

namespace pyfold::gpu {
namespace {

constexpr uint64_t kSectorBytes = 32;

struct Addresses {
  uint64_t lane[kLanes];

  Addresses(Warp& warp, const Instruction& instruction) {
    const uint64_t offset = static_cast<uint64_t>(instruction.offset);
    if (instruction.address_bytes == 4) {
      const uint32_t* base = warp.lanes<uint32_t>(instruction.source[0]);
      for (int l = 0; l < kLanes; ++l) lane[l] = base[l] + offset;
    } else {
      const uint64_t* base = warp.lanes<uint64_t>(instruction.source[0]);
      for (int l = 0; l < kLanes; ++l) lane[l] = base[l] + offset;
    }
  }
};

// A global address has no window.
bool in_window(uint64_t address) { return address >> 48 == 0xFFFF; }

Space space_of(Space declared, uint64_t& address) {
  if (declared != Space::kGeneric) return declared;
  const uint64_t window = address & kWindowMask;
  if (!in_window(address)) return Space::kGlobal;
  address &= ~kWindowMask;
  if (window == kSharedWindow) return Space::kShared;
  if (window == kLocalWindow) return Space::kLocal;
  if (window == kParameterWindow) return Space::kParameter;
  throw Fault("touches a generic address that is in no window");
}

void note(Cell* cells, uint64_t bytes, const Accessor& by, const Instruction& instruction) {
  for (uint64_t b = 0; b < bytes; ++b) {
    const char* wrong = instruction.store ? note_write(cells[b], by) : note_read(cells[b], by, instruction.constant);
    if (wrong != nullptr) throw Fault(wrong);
  }
}

void within(uint64_t address, uint64_t bytes, uint64_t size, const char* what) {
  if (address <= size && bytes <= size - address) return;
  throw Fault("touches " + std::to_string(bytes) + " bytes at byte " + std::to_string(static_cast<int64_t>(address)) +
              " of the " + std::to_string(size) + " bytes of " + what);
}

void count_sectors(Warp& warp, const Instruction& instruction, const Addresses& addresses) {
  uint64_t sectors[kLanes * 2];
  auto& distinct = instruction.store ? warp.kernel->distinct_stores : warp.kernel->distinct_loads;
  size_t count = 0;
  const uint64_t bytes = static_cast<uint64_t>(instruction.bytes) * instruction.elements;
  for (int l = 0; l < kLanes; ++l) {
    if (!(warp.mask >> l & 1) || in_window(addresses.lane[l])) continue;
    for (uint64_t s = addresses.lane[l] / kSectorBytes; s <= (addresses.lane[l] + bytes - 1) / kSectorBytes; ++s) {
      sectors[count++] = s;
      distinct.insert(s);
    }
  }
  std::sort(sectors, sectors + count);
  warp.kernel->sectors[static_cast<size_t>(&instruction - warp.kernel->code.data())] +=
      static_cast<uint64_t>(std::unique(sectors, sectors + count) - sectors);
}

// body(lane, memory) for each lane that takes part.
template <class Body>
void each_lane(Warp& warp, const Instruction& instruction, Body&& body) {
  const Addresses addresses(warp, instruction);
  const bool global = instruction.space == Space::kGlobal || instruction.space == Space::kGeneric;
  if (global && warp.block->options->sectors) count_sectors(warp, instruction, addresses);
  for (uint32_t left = warp.mask; left != 0; left &= left - 1) {
    warp.lane = __builtin_ctz(left);
    body(warp.lane, warp.access(warp.lane, instruction.space, addresses.lane[warp.lane], instruction));
  }
  warp.lane = -1;
}

// What a load of fewer bytes than its register has leaves above them.
uint64_t extended(const unsigned char* memory, const Instruction& instruction) {
  uint64_t value = 0;
  std::memcpy(&value, memory, instruction.bytes);
  const int above = 64 - 8 * instruction.bytes;
  if (!instruction.extended_by_sign) return value;
  return static_cast<uint64_t>(static_cast<int64_t>(value << above) >> above);
}

}  // namespace

unsigned char* Warp::access(int lane, Space space, uint64_t address, const Instruction& instruction) {
  const uint64_t bytes = static_cast<uint64_t>(instruction.bytes) * instruction.elements;
  space = space_of(space, address);
  if (address % bytes != 0) {
    throw Fault("touches " + std::to_string(bytes) + " bytes at an address that is " + std::to_string(address % bytes) +
                " more than a multiple of them: misaligned");
  }
  switch (space) {
    case Space::kShared:
      within(address, bytes, block->shared.size(), "shared memory");
      if (!instruction.store) {
        for (uint64_t b = 0; b < bytes; ++b) {
          if (block->shared_cells[address + b].writer == 0) throw Fault("reads shared memory that nothing has written");
        }
      }
      note(&block->shared_cells[address], bytes, accessor(lane), instruction);
      return block->shared.data() + address;
    case Space::kLocal:
      within(address, bytes, local_bytes_, "local memory");
      return local_.data() + static_cast<size_t>(lane) * local_bytes_ + address;
    case Space::kFrame:
      return frame(lane) + address;
    case Space::kParameter:
      if (instruction.store) throw Fault("writes the kernel's parameters");
      within(address, bytes, block->launch->parameters.size(), "the kernel's parameters");
      return const_cast<unsigned char*>(block->launch->parameters.data()) + address;
    default:
      Allocations::all().check(address, bytes);
      if (space == Space::kConst && instruction.store) throw Fault("writes constant memory");
      // Aligned, so all bytes are of one page of cells.
      if (block->options->races) note(&block->global_cells->at(address), bytes, accessor(lane), instruction);
      return reinterpret_cast<unsigned char*>(address);
  }
}

void load(Warp& warp, const Instruction& instruction) {
  const size_t width = instruction.width;
  each_lane(warp, instruction, [&](int lane, const unsigned char* memory) {
    for (size_t e = 0; e < instruction.elements; ++e, memory += instruction.bytes) {
      unsigned char* to = warp.lanes<unsigned char>(instruction.vector[e]) + static_cast<size_t>(lane) * width;
      if (width == instruction.bytes) {
        std::memcpy(to, memory, width);
      } else {
        const uint64_t value = extended(memory, instruction);
        std::memcpy(to, &value, width);
      }
    }
  });
}

void store(Warp& warp, const Instruction& instruction) {
  const size_t width = instruction.width;
  each_lane(warp, instruction, [&](int lane, unsigned char* memory) {
    for (size_t e = 0; e < instruction.elements; ++e, memory += instruction.bytes) {
      std::memcpy(memory, warp.lanes<unsigned char>(instruction.vector[e]) + static_cast<size_t>(lane) * width,
                  instruction.bytes);
    }
  });
}

}  // namespace pyfold::gpu

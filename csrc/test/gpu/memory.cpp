#include "test/gpu/memory.h"

#include <algorithm>
#include <cstdio>

#include "test/gpu/fault.h"

namespace pyfold::gpu {

Allocations& Allocations::all() {
  static Allocations* allocations = new Allocations;  // outlives whatever frees memory at exit
  return *allocations;
}

std::vector<Allocations::Allocation>::iterator Allocations::from(uint64_t address) {
  return std::lower_bound(sorted_.begin(), sorted_.end(), address,
                          [](const Allocation& one, uint64_t at) { return one.address < at; });
}

void Allocations::add(const void* memory, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t address = reinterpret_cast<uint64_t>(memory);
  sorted_.insert(from(address), {address, bytes});
}

void Allocations::remove(const void* memory) {
  const std::lock_guard lock(mutex_);
  const uint64_t address = reinterpret_cast<uint64_t>(memory);
  const auto found = from(address);
  if (found != sorted_.end() && found->address == address) sorted_.erase(found);
}

void Allocations::find(uint64_t address, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  auto after = from(address + 1);
  const bool any = after != sorted_.begin();
  const auto before = any ? after - 1 : after;
  if (any && address + bytes <= before->address + before->bytes) {
    low_ = before->address;
    high_ = before->address + before->bytes;
    return;
  }
  char text[200];
  if (any && address < before->address + before->bytes + (1 << 20)) {
    std::snprintf(text, sizeof text, "touches %llu bytes at byte %llu of an allocation of %llu bytes",
                  static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(address - before->address),
                  static_cast<unsigned long long>(before->bytes));
  } else if (after != sorted_.end() && after->address - address < (1 << 20)) {
    std::snprintf(text, sizeof text, "touches %llu bytes, %llu before an allocation",
                  static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(after->address - address));
  } else {
    std::snprintf(text, sizeof text, "touches %#llx, which no allocation of the device holds",
                  static_cast<unsigned long long>(address));
  }
  throw Fault(text);
}

}  // namespace pyfold::gpu

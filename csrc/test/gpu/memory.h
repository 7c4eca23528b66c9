#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "test/gpu/races.h"

namespace pyfold::gpu {

// Generic addresses: what lies in none of these windows is global memory, at the address that it has on the host.
constexpr uint64_t kSharedWindow = 0xFFFF'1000'0000'0000;
constexpr uint64_t kLocalWindow = 0xFFFF'2000'0000'0000;
constexpr uint64_t kParameterWindow = 0xFFFF'3000'0000'0000;
constexpr uint64_t kWindowMask = 0xFFFF'F000'0000'0000;

// The global memory that kernels may touch: what cudaMalloc gave, modules' variables, and whatever else is announced.
class Allocations {
 public:
  static Allocations& all();

  void add(const void* memory, uint64_t bytes);
  void remove(const void* memory);

  // Throws Fault where [address, address + bytes) is not within one allocation.
  void check(uint64_t address, uint64_t bytes) {
    if (address < low_ || address + bytes > high_) find(address, bytes);
  }
  // Other threads may have allocated since: forgets the range that check() found last.
  void refresh() { low_ = high_ = 0; }

 private:
  struct Allocation {
    uint64_t address, bytes;
  };
  void find(uint64_t address, uint64_t bytes);
  std::vector<Allocation>::iterator from(uint64_t address);

  std::mutex mutex_;
  std::vector<Allocation> sorted_;
  uint64_t low_ = 0, high_ = 0;
};

}  // namespace pyfold::gpu

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace pyfold::gpu {

// Which thread of a launch touches memory, and when: threads are counted across the launch's blocks from 1. Two
// accesses are ordered if a barrier lies between them: a higher block_epoch in the same block, or warp_epoch in the
// same warp.
struct Accessor {
  uint32_t thread = 0, threads_per_block = 1, block_epoch = 0, warp_epoch = 0;

  uint32_t block() const { return (thread - 1) / threads_per_block; }
  uint32_t warp() const { return block() * 32 + (thread - 1) % threads_per_block / 32; }
};

// How far apart the threads are that have read a byte with no barrier between them.
enum class Spread : uint8_t { kThread, kWarp, kBlock, kGrid };

// What is known of one byte within a launch: its last writer, and the last of its readers. A thread of 0 is none.
struct Cell {
  uint32_t writer = 0, writer_epochs = 0;
  uint32_t reader = 0, reader_epochs = 0;
  Spread readers = Spread::kThread;
  bool read_as_constant = false;
};

// Each returns what is wrong, or null. `constant`: by ld.global.nc, whose bytes no thread may write in this launch.
const char* note_read(Cell& cell, const Accessor& by, bool constant);
const char* note_write(Cell& cell, const Accessor& by);

// The cells of global memory, made where a launch touches it.
class GlobalCells {
 public:
  Cell& at(uint64_t address) {
    const uint64_t page = address / kPage;
    if (page != last_page_) find(page);
    return last_cells_[address % kPage];
  }
  void clear();

 private:
  static constexpr uint64_t kPage = 4096;
  void find(uint64_t page);

  std::unordered_map<uint64_t, std::unique_ptr<Cell[]>> pages_;
  std::vector<std::unique_ptr<Cell[]>> spare_;
  uint64_t last_page_ = ~uint64_t{0};
  Cell* last_cells_ = nullptr;
};

}  // namespace pyfold::gpu

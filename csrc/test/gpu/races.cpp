#include "test/gpu/races.h"

#include <algorithm>

namespace pyfold::gpu {
namespace {

// Both kinds of epochs in a word; kernels that pass 65,536 barriers are beyond these tests.
uint32_t epochs_of(const Accessor& by) { return by.block_epoch << 16 | (by.warp_epoch & 0xFFFF); }

Spread spread(uint32_t thread, const Accessor& by) {
  Accessor other = by;
  other.thread = thread;
  return thread == by.thread           ? Spread::kThread
         : other.block() != by.block() ? Spread::kGrid
         : other.warp() != by.warp()   ? Spread::kBlock
                                       : Spread::kWarp;
}

// Whether what threads so far apart did at `epochs` is sure to come before what `by` does now.
bool ordered(Spread apart, uint32_t epochs, const Accessor& by) {
  return apart == Spread::kThread || (apart != Spread::kGrid && epochs >> 16 < by.block_epoch) ||
         (apart == Spread::kWarp && (epochs & 0xFFFF) < (by.warp_epoch & 0xFFFF));
}

}  // namespace

const char* note_read(Cell& cell, const Accessor& by, bool constant) {
  if (cell.writer != 0) {
    if (constant) return "reads as constant (ld.global.nc) what this launch writes";
    if (!ordered(spread(cell.writer, by), cell.writer_epochs, by)) {
      return "races with a write of another thread: no barrier orders this read after it";
    }
  }
  cell.read_as_constant |= constant;
  const Spread apart = cell.reader == 0 ? Spread::kThread : std::max(cell.readers, spread(cell.reader, by));
  cell.readers = ordered(apart, cell.reader_epochs, by) ? Spread::kThread : apart;
  cell.reader = by.thread;
  cell.reader_epochs = epochs_of(by);
  return nullptr;
}

const char* note_write(Cell& cell, const Accessor& by) {
  if (cell.writer != 0 && !ordered(spread(cell.writer, by), cell.writer_epochs, by)) {
    return "races with a write of another thread to the same byte: no barrier orders them";
  }
  if (cell.read_as_constant) return "writes what this launch reads as constant (ld.global.nc)";
  if (cell.reader != 0 && !ordered(std::max(cell.readers, spread(cell.reader, by)), cell.reader_epochs, by)) {
    return "races with a read of another thread: no barrier orders this write after it";
  }
  cell.writer = by.thread;
  cell.writer_epochs = epochs_of(by);
  return nullptr;
}

void GlobalCells::find(uint64_t page) {
  std::unique_ptr<Cell[]>& cells = pages_[page];
  if (!cells && !spare_.empty()) {
    cells = std::move(spare_.back());
    spare_.pop_back();
    std::fill_n(cells.get(), kPage, Cell{});
  } else if (!cells) {
    cells = std::make_unique<Cell[]>(kPage);
  }
  last_page_ = page;
  last_cells_ = cells.get();
}

void GlobalCells::clear() {
  for (auto& [page, cells] : pages_) {
    if (spare_.size() < 1024) spare_.push_back(std::move(cells));
  }
  pages_.clear();
  last_page_ = ~uint64_t{0};
}

}  // namespace pyfold::gpu

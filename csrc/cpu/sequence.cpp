#include "cpu/sequence.h"

#include "cpu/fold_tile.h"

namespace pyfold {
namespace {

// Floats in all rows of a tile: 16 rows of 256 units, 64 of 64, or kMaxRows of 16.
constexpr int kBuffer = 4096;
constexpr int kTileUnits = 256;
static_assert(kMaxRows * 16 <= kBuffer);

// folds/sequence.h's Tile on a CPU: lanes side by side, so that every instruction is a loop that vectorises.
template <class A>
class CpuRows {
 public:
  CpuRows(const SequenceArgs& args, int64_t index)
      : args_(args),
        units_(cpu::sequence_tile(args)),
        in_(args.in_layout, args.dtype, units_, index),
        out_(args.out_layout, args.dtype, units_, index) {}

  A* row(int r) { return buffer_ + r * units_; }
  A* scratch() { return scratch_; }
  int lanes() const { return in_.count(); }
  uint8_t* flags(int k) { return flags_[k]; }

  void write(int plane, uint8_t* flags) {
    if (args_.bits == nullptr) return;
    for (int l = lanes(); l % 8 != 0; ++l) flags[l] = 0;
    in_.write_flags(flags, in_.plane(args_.bits, plane, args_.planes));
  }
  void read(int plane, uint8_t* flags) const { in_.read_flags(in_.plane(args_.bits, plane, args_.planes), flags); }

  void load() {
    for (int k = 0; k < args_.in_layout.components; ++k) {
      A* to = row(k);
      const A* from = in_.load(args_.in, k, to);
      if (args_.bias != nullptr) {
        const A* bias = static_cast<const A*>(args_.bias);
        in_.spread(scratch_, [&](int64_t line) { return bias[fold_channel(args_.in_layout, line, k)]; });
        for (int l = 0; l < lanes(); ++l) to[l] = from[l] + scratch_[l];
      } else if (from != to) {
        load_run(from, to, lanes());
      }
    }
  }
  void store() {
    for (int k = 0; k < args_.out_layout.components; ++k) out_.store(row(k), args_.out, k);
  }

 private:
  const SequenceArgs& args_;
  int units_;
  FoldTile<A> in_, out_;
  alignas(64) A buffer_[kBuffer];
  alignas(64) A scratch_[kTileUnits];
  alignas(64) uint8_t flags_[2][kTileUnits];
};

template <class A>
void run_tile(const SequenceArgs& args, int64_t index) {
  CpuRows<A> rows(args, index);
  rows.load();
  SequenceRunner<A, CpuRows<A>>(args, rows).run();
  rows.store();
}

void run(const SequenceArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    args.dtype == DType::kFloat64 ? run_tile<double>(args, i) : run_tile<float>(args, i);
  }
}

}  // namespace

namespace cpu {

const SequenceKernels PYFOLD_TIER_SYMBOL(sequence_kernels) = {run};

}  // namespace cpu
}  // namespace pyfold

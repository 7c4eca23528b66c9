#include "cpu/sequence.h"

#include <algorithm>
#include <type_traits>

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

constexpr int kValueBlock = 1024;

// One fold of single values, or its derivative, in one pass over a block; bits may be null. The fold comes by value, so
// that its constants are known to be no memory, and the loops vectorise.
template <class A, class Fold>
void fold_block(const Fold fold, bool forward, uint8_t* bits, const A* __restrict from, A* __restrict to, int count) {
  alignas(64) uint8_t flags[kValueBlock];
  if (!forward) {
    unpack_flags(bits, flags, count);
    for (int i = 0; i < count; ++i) to[i] = fold.linear(from[i], flags[i] != 0);
  } else if (bits == nullptr) {
    for (int i = 0; i < count; ++i) to[i] = fold.folded(from[i], fold.side(from[i]));
  } else {
    for (int i = count & ~7; i < ((count + 7) & ~7); ++i) flags[i] = 0;
    for (int i = 0; i < count; ++i) {
      const A v = from[i];
      const bool m = fold.side(v);
      flags[i] = m;
      to[i] = fold.folded(v, m);
    }
    pack_flags(flags, bits, count);
  }
}

// So many values from first on, which lie in order; those that need no conversion are not copied.
template <class A, class Fold>
void fold_values(const SequenceArgs& args, const Fold fold, int64_t first, int64_t count, uint8_t* bits) {
  const bool forward = args.mode == SequenceMode::kForward;
  with_type<A>(args.dtype, const_cast<void*>(args.in), [&](auto* in) {
    auto* out = static_cast<decltype(in)>(args.out);
    for (int64_t at = 0; at < count; at += kValueBlock) {
      const int block = count - at < kValueBlock ? static_cast<int>(count - at) : kValueBlock;
      const auto* from = in + first + at;
      auto* to = out + first + at;
      uint8_t* block_bits = bits == nullptr ? nullptr : bits + at / 8;
      if constexpr (std::is_same_v<decltype(from), const A*>) {
        fold_block<A>(fold, forward, block_bits, from, to, block);
      } else {
        alignas(64) A wide[kValueBlock], folded[kValueBlock];
        load_run(from, wide, block);
        fold_block<A>(fold, forward, block_bits, wide, folded, block);
        store_run(folded, to, block);
      }
    }
  });
}

// Tiles [begin, end), group by group: the bits of each group start on a byte.
template <class A, class Fold>
void fold_value_tiles(const SequenceArgs& args, const Fold fold, int64_t begin, int64_t end) {
  const FoldLayout& layout = args.in_layout;
  const int64_t tile = cpu::sequence_tile(args), per_group = cpu::fold_tiles_per_group(layout, tile);
  for (int64_t from = begin; from < end;) {
    const int64_t group = from / per_group, to = std::min(end, (group + 1) * per_group);
    const int64_t start = (from - group * per_group) * tile;
    const int64_t stop = std::min((to - group * per_group) * tile, layout.units_per_group());
    uint8_t* bits = args.bits == nullptr ? nullptr : args.bits + group * layout.bytes_per_group() + start / 8;
    fold_values<A>(args, fold, group * layout.units_per_group() + start, stop - start, bits);
    from = to;
  }
}

// Calls body with the fold where a program is one fold of single values; says whether it is.
template <class A, class Body>
bool with_value_fold(const SequenceArgs& args, Body&& body) {
  const FoldInstruction& in = args.instructions[0];
  if (args.count != 1 || args.in_layout.components != 1 || args.bias != nullptr || in.constant >= kParameters ||
      in.plane != 0 || args.mode == SequenceMode::kInverse) {
    return false;
  }
  const A constant = static_cast<A>(args.constants[in.constant]);
  switch (static_cast<FoldOp>(in.op)) {
    case FoldOp::kMirror:
      return body(MirrorFold<A>{constant}), true;
    case FoldOp::kLeaky:
      return body(LeakyFold<A>{constant}), true;
    case FoldOp::kBox:
      return body(BoxFold<A>{constant}), true;
    default:
      return false;
  }
}

template <class A>
void run_tiles(const SequenceArgs& args, int64_t begin, int64_t end) {
  if (with_value_fold<A>(args, [&](auto fold) { fold_value_tiles<A>(args, fold, begin, end); })) return;
  for (int64_t i = begin; i < end; ++i) run_tile<A>(args, i);
}

void run(const SequenceArgs& args, int64_t begin, int64_t end) {
  args.dtype == DType::kFloat64 ? run_tiles<double>(args, begin, end) : run_tiles<float>(args, begin, end);
}

}  // namespace

namespace cpu {

const SequenceKernels PYFOLD_TIER_SYMBOL(sequence_kernels) = {run};

}  // namespace cpu
}  // namespace pyfold

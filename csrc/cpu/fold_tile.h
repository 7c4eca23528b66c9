#pragma once

#include "cpu/convert.h"
#include "cpu/flags.h"
#include "cpu/folds.h"

namespace pyfold {
namespace {

using cpu::kFoldTile;

// Tile number index of a tensor: up to units units of one group, their values in the accumulation type. units is a
// multiple of 8, so that a tile's bits begin on a byte.
template <class A>
class FoldTile {
 public:
  FoldTile(const FoldLayout& layout, DType dtype, int units, int64_t index)
      : layout_(layout), dtype_(dtype), units_(units) {
    const int64_t per_group = cpu::fold_tiles_per_group(layout, units);
    group_ = index / per_group;
    start_ = (index - group_ * per_group) * units;
    const int64_t left = layout.units_per_group() - start_;
    count_ = left < units ? static_cast<int>(left) : units;
    first_unit_ = group_ * layout.units_per_group() + start_;
  }

  int count() const { return count_; }
  int64_t first_unit() const { return first_unit_; }

  // Component k of the units, where it lies if it needs no conversion, else in buffer.
  const A* load(const void* data, int k, A* buffer) const {
    const A* result = buffer;
    with_type<A>(dtype_, const_cast<void*>(data), [&](auto* memory) {
      each_run([&](int at, const FoldRun& run, int length) {
        const auto* from = memory + run.offset + k * run.apart;
        if (run.step == 2) {  // known to the compiler, so that it can shuffle
          for (int i = 0; i < length; ++i) buffer[at + i] = static_cast<A>(widen(from[2 * i]));
        } else if (run.step != 1) {
          for (int i = 0; i < length; ++i) buffer[at + i] = static_cast<A>(widen(from[run.step * i]));
        } else if (sizeof(*memory) == sizeof(A) && length == units_) {
          result = reinterpret_cast<const A*>(from);
        } else {
          load_run(from, buffer + at, length);
        }
      });
    });
    return result;
  }

  void store(const A* values, void* data, int k) const {
    with_type<A>(dtype_, data, [&](auto* memory) {
      each_run([&](int at, const FoldRun& run, int length) {
        auto* to = memory + run.offset + k * run.apart;
        if (run.step == 2) {
          for (int i = 0; i < length; ++i) narrow(values[at + i], to[2 * i]);
        } else if (run.step != 1) {
          for (int i = 0; i < length; ++i) narrow(values[at + i], to[run.step * i]);
        } else {
          store_run(values + at, to, length);
        }
      });
    });
  }

  // values[line] for each unit, where value(line) reads the parameter.
  template <class Value>
  void spread(A* out, Value&& value) const {
    each_line([&](int at, int64_t line, int length) {
      if (layout_.inner == 1) {
        for (int i = 0; i < length; ++i) out[at + i] = value(line + i);
      } else {
        const A constant = value(line);
        for (int i = 0; i < length; ++i) out[at + i] = constant;
      }
    });
  }

  // body(at, line, length): stretches of one line, or of neighbouring lines where inner is 1.
  template <class Body>
  void each_line(Body&& body) const {
    const FoldLayout& layout = layout_;
    for (int at = 0; at < count_;) {
      const int64_t unit = first_unit_ + at;
      const int64_t line = fold_line(layout, unit);
      const int64_t left = layout.inner == 1 ? layout.lines() - line : layout.inner - unit % layout.inner;
      const int length = left < count_ - at ? static_cast<int>(left) : count_ - at;
      body(at, line, length);
      at += length;
    }
  }

  void read_flags(const uint8_t* bytes, uint8_t* flags) const { unpack_flags(bytes, flags, count_); }
  // flags holds zeros from count to the next multiple of 8.
  void write_flags(const uint8_t* flags, uint8_t* bytes) const { pack_flags(flags, bytes, count_); }
  // This tile's bytes of one of the planes of [groups, planes, bytes_per_group].
  uint8_t* plane(uint8_t* bits, int plane, int planes) const {
    return bits + (group_ * planes + plane) * layout_.bytes_per_group() + start_ / 8;
  }

  // body(at, run, length): stretches of units that lie at one step.
  template <class Body>
  void each_run(Body&& body) const {
    for (int at = 0; at < count_;) {
      const FoldRun run = fold_run(layout_, first_unit_ + at);
      const int length = run.run < count_ - at ? static_cast<int>(run.run) : count_ - at;
      body(at, run, length);
      at += length;
    }
  }

 private:
  const FoldLayout& layout_;
  DType dtype_;
  int units_;
  int64_t group_;
  int64_t start_;
  int64_t first_unit_;
  int count_;
};

}  // namespace
}  // namespace pyfold

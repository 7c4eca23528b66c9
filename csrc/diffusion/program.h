#pragma once

#include <math.h>
#include <stdint.h>

#include <initializer_list>
#include <type_traits>

#include "core/lanes.h"
#include "core/macros.h"
#include "core/normal.h"
#include "core/view.h"

// What the ops of this folder share. Each op is a program over a Tile: some lanes of one row. A Tile offers
//   Acc                  the accumulation type: double for float64 states, float for all others
//   Register             Acc values, one a lane; coefficient * register is a term
//   Cells, cells         the coefficients of the row in a table, by their columns, each read where it is used
//   load, store          between a Register and a View, converting the dtype; the normals of a Noise are loaded too
//   let(y, sum)          y = a sum of terms, or what clip makes of one
//   write(view, y, sum)  the same, or a Noise, stored in view, which may be the memory of any operand
//   keep(y)              before a write: y is read after it
//   subtract, dot        of Registers
// and is written four times, in cpu/tile.h and in cuda's tile.cuh, pack_tile.cuh and warp_tile.cuh; the programs are
// written once.
namespace pyfold {

// A table of coefficient rows and which row each sample takes: index[b], index[0] for all, or b itself where there is
// none.
struct Table {
  const double* data = nullptr;
  int64_t rows = 0;
  const int64_t* index = nullptr;
  int64_t index_stride = 0;
};

// Which noise each sample draws. Stream and step are sums modulo 2^32 of a number and what may lie on the device, where
// a recorded graph reads it anew; a negative int64 counts as its two's complement.
struct NoiseSource {
  const int64_t* seeds = nullptr;  // one a sample
  int64_t seeds_stride = 1;        // 2: keys, each a seed and the block that element 0 lies in
  uint32_t stream = 0;
  uint32_t step = 0;
  const int64_t* streams = nullptr;    // added to stream: streams[b * streams_stride] for sample b
  int64_t streams_stride = 0;          // 0: one for all samples, 1: one a sample
  const int64_t* positions = nullptr;  // added to step, in the same way
  int64_t positions_stride = 0;
  Window window;
};

namespace {

// A row outside the table is one of NaN: it is seen in the sample, and no device has to be asked before the launch.
constexpr int kMaxColumns = 32;

struct NanRow {
  double columns[kMaxColumns];
  constexpr NanRow() : columns{} {
    for (double& each : columns) each = static_cast<double>(NAN);
  }
};
#if defined(__CUDACC__)
__device__ const NanRow kNanRowOfDevice;
#endif
constexpr NanRow kNanRow;

PYFOLD_HD const double* nan_row() {
#if defined(__CUDA_ARCH__)
  return kNanRowOfDevice.columns;
#else
  return kNanRow.columns;
#endif
}

PYFOLD_HD const double* table_row(const Table& table, int64_t columns, int64_t sample) {
  int64_t row = sample;
  if (table.index != nullptr) {
    row = table.index[sample * table.index_stride];
  } else if (table.rows == 1) {
    row = 0;
  }
  return row >= 0 && row < table.rows ? table.data + row * columns : nan_row();
}

// A coefficient, read where it is used.
template <class A>
struct Column {
  const double* cell;

  PYFOLD_HD operator A() const { return static_cast<A>(*cell); }
};

// A row of them.
template <class A>
struct TableCells {
  const double* row;

  PYFOLD_HD Column<A> operator[](int column) const { return {row + column}; }
};

// The low half of a row's counter adds to the step; the high half to the stream, in steps of 2048.
PYFOLD_HD NoiseKey with_counter(NoiseKey key, uint64_t counter) {
  key.step += static_cast<uint32_t>(counter);
  key.stream += static_cast<uint32_t>(counter >> 32) << 11;
  return key;
}

PYFOLD_HD NoiseKey noise_key(const NoiseSource& source, int64_t sample) {
  uint32_t stream = source.stream, step = source.step;
  if (source.streams != nullptr) stream += static_cast<uint32_t>(source.streams[sample * source.streams_stride]);
  if (source.positions != nullptr) step += static_cast<uint32_t>(source.positions[sample * source.positions_stride]);
  const int64_t* seed = source.seeds + sample * source.seeds_stride;
  return noise_key(seed[0], stream, step, source.seeds_stride == 2 ? static_cast<uint64_t>(seed[1]) : 0);
}

// A counter that a table holds, 64 bits. What no int64 holds counts as 0: it would be another number on each device.
PYFOLD_HD uint64_t noise_counter(double value) {
  return value > -0x1p63 && value < 0x1p63 ? static_cast<uint64_t>(static_cast<int64_t>(value)) : 0;
}

// Normals, of a counter in the table or of none.
struct Noise {
  const NoiseSource& source;
  const double* counter = nullptr;

  PYFOLD_HD explicit operator bool() const { return source.seeds != nullptr; }
  PYFOLD_HD NoiseKey key(int64_t sample) const {
    return with_counter(noise_key(source, sample), counter != nullptr ? noise_counter(*counter) : 0);
  }
};

// coefficient * value, for a Register, a View or a Noise. A zero coefficient drops the term (also if the value is not
// finite), and so does an operand that is absent.
template <class C, class Value>
struct Term {
  C coefficient;
  const Value& value;

  PYFOLD_HD bool dropped() const {
    if constexpr (requires { static_cast<bool>(value); }) {
      if (!value) return true;
    }
    return coefficient == 0;
  }
  template <class Body>
  PYFOLD_HD void each(Body& body) const {
    body(*this);
  }
};

template <class Terms, class Last>
struct Sum {
  Terms terms;
  Last last;

  template <class Body>
  PYFOLD_HD void each(Body& body) const {
    terms.each(body);
    last.each(body);
  }
};

template <class Terms, class C>
struct Clipped {
  Terms terms;
  C low, high;
};

template <class C>
PYFOLD_HD Term<C, View> operator*(C coefficient, const View& value) {
  return {coefficient, value};
}
template <class C>
PYFOLD_HD Term<C, Noise> operator*(C coefficient, const Noise& value) {
  return {coefficient, value};
}
template <class C, class First, class Second>
PYFOLD_HD Sum<Term<C, First>, Term<C, Second>> operator+(const Term<C, First>& first, const Term<C, Second>& second) {
  return {first, second};
}
template <class Terms, class Last, class C, class Next>
PYFOLD_HD Sum<Sum<Terms, Last>, Term<C, Next>> operator+(const Sum<Terms, Last>& sum, const Term<C, Next>& next) {
  return {sum, next};
}
template <class Terms, class C>
PYFOLD_HD Clipped<Terms, C> clip(const Terms& terms, C low, C high) {
  return {terms, low, high};
}

// What a sum is: its terms added in order, each product and each sum rounded. For the few lanes of a register; a Tile
// that goes about it in another way gives the same bits.
template <class Tile>
struct Adder {
  using Acc = typename Tile::Acc;
  using Register = typename Tile::Register;
  const Tile& tile;
  Register& sum;
  bool empty = true;

  template <class C, class Value>
  PYFOLD_HD void operator()(const Term<C, Value>& term) {
    if (term.dropped()) return;
    if constexpr (std::is_same_v<Value, Register>) {
      add(term.coefficient, term.value);
    } else {
      Register operand;
      tile.load(operand, term.value);
      add(term.coefficient, operand);
    }
  }
  PYFOLD_HD void add(Acc coefficient, const Register& x) {
    if (empty) {
      scale(sum.lane, coefficient, x.lane, Tile::kLanes);
    } else {
      add_scaled(sum.lane, coefficient, x.lane, Tile::kLanes);
    }
    empty = false;
  }
};

template <class Tile, class Terms>
PYFOLD_HD void add_up(const Tile& tile, typename Tile::Register& out, const Terms& terms) {
  fill(out.lane, typename Tile::Acc{0}, Tile::kLanes);
  Adder<Tile> adder{tile, out};
  terms.each(adder);
}
template <class Tile, class Terms, class C>
PYFOLD_HD void add_up(const Tile& tile, typename Tile::Register& out, const Clipped<Terms, C>& clipped) {
  using Acc = typename Tile::Acc;
  add_up(tile, out, clipped.terms);
  clip(out.lane, static_cast<Acc>(clipped.low), static_cast<Acc>(clipped.high), Tile::kLanes);
}

}  // namespace
}  // namespace pyfold

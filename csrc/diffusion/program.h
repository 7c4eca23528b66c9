#pragma once

#include <math.h>
#include <stdint.h>

#include "core/macros.h"
#include "core/normal.h"
#include "core/view.h"

// What the ops of this folder share. Each op is a program over a Tile: some lanes of one row. A Tile offers
//   Acc                       the accumulation type: double for float64 states, float for all others
//   Register                  Acc values, one a lane
//   load, store               between a Register and a View, converting the dtype
//   noise                     standard normals of the lanes' logical elements
//   scale, add_scaled, ...    core/lanes.h on Registers
//   kPassesCount              whether every operation is a pass over memory, a cache's; then it also has
//   aim, share, sum           where a result will lie, a register that is another's value, some terms in one pass
// and is written twice, in cpu/tile.h and cuda/tile.cuh; the programs are written once.
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
  uint32_t stream = 0;
  uint32_t step = 0;
  const int64_t* streams = nullptr;    // added to stream: streams[b * streams_stride] for sample b
  int64_t streams_stride = 0;          // 0: one for all samples, 1: one a sample
  const int64_t* positions = nullptr;  // added to step, in the same way
  int64_t positions_stride = 0;
  Window window;
};

namespace {

// A row outside the table makes the sample NaN: it is seen, and no device has to be asked before the launch.
PYFOLD_HD const double* table_row(const Table& table, int64_t columns, int64_t sample) {
  int64_t row = sample;
  if (table.index != nullptr) {
    row = table.index[sample * table.index_stride];
  } else if (table.rows == 1) {
    row = 0;
  }
  return row >= 0 && row < table.rows ? table.data + row * columns : nullptr;
}

template <class A>
PYFOLD_HD A column(const double* row, int i) {
  return static_cast<A>(row != nullptr ? row[i] : static_cast<double>(NAN));
}

PYFOLD_HD NoiseKey noise_key(const NoiseSource& source, int64_t sample, uint32_t offset = 0) {
  uint32_t stream = source.stream, step = source.step + offset;
  if (source.streams != nullptr) stream += static_cast<uint32_t>(source.streams[sample * source.streams_stride]);
  if (source.positions != nullptr) step += static_cast<uint32_t>(source.positions[sample * source.positions_stride]);
  return noise_key(source.seeds[sample], stream, step);
}

// A counter that a table holds, modulo 2^32. What no int64 holds counts as 0: it would be another number on each
// device.
PYFOLD_HD uint32_t noise_counter(double value) {
  return value > -0x1p63 && value < 0x1p63 ? static_cast<uint32_t>(static_cast<int64_t>(value)) : 0;
}

// sum += coefficient * x, where a zero coefficient drops the term (also if x is not finite). Where passes count, a term
// whose register lasts until the next one is added waits for it, so that up to kTermsOfPass are one pass, rounded as
// one by one.
constexpr int kTermsOfPass = 3;

template <class Tile>
struct Sum {
  using Acc = typename Tile::Acc;
  using Register = typename Tile::Register;
  Register& value;
  bool empty = true;
  int waiting = 0;
  Acc coefficients[kTermsOfPass] = {};
  const Register* terms[kTermsOfPass] = {};

  PYFOLD_HD void add(Tile& tile, Acc coefficient, const Register& x, bool lasts = false) {
    if (coefficient == 0) return;
    if constexpr (Tile::kPassesCount) {
      coefficients[waiting] = coefficient;
      terms[waiting++] = &x;
      if (lasts && waiting < kTermsOfPass) return;
      tile.sum(value, !empty, waiting, coefficients, terms);
      waiting = 0;
    } else if (empty) {
      tile.scale(value, coefficient, x);
    } else {
      tile.add_scaled(value, coefficient, x);
    }
    empty = false;
  }
  PYFOLD_HD void finish(Tile& tile) {
    if constexpr (Tile::kPassesCount) {
      if (waiting > 0) return tile.sum(value, !empty, waiting, coefficients, terms);
    }
    if (empty) tile.fill(value, 0);
  }
  PYFOLD_HD void finish_clipped(Tile& tile, Acc low, Acc high) {
    if constexpr (Tile::kPassesCount) {
      if (waiting > 0) return tile.sum_clipped(value, !empty, waiting, coefficients, terms, low, high);
    }
    if (empty) tile.fill(value, 0);
    tile.clip(value, low, high);
  }
};

}  // namespace
}  // namespace pyfold

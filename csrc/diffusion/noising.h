#pragma once

#include "diffusion/program.h"

// The forward process x_t = alpha x0 + sigma eps (Kingma et al. 2021, eq. 1) and what a network is trained to say about
// it: target = target_x0 x0 + target_epsilon eps.
namespace pyfold {

#define PYFOLD_NOISING_COLUMNS(X) X(alpha) X(sigma) X(target_x0) X(target_epsilon) X(weight)

enum NoisingColumn : int {
#define PYFOLD_ENUM(name) kNoising_##name,
  PYFOLD_NOISING_COLUMNS(PYFOLD_ENUM)
#undef PYFOLD_ENUM
      kNoisingColumns
};

struct NoisingArgs {
  Geometry geometry;
  Table table;
  NoiseSource noise;
  View x0;
  View prediction;                  // residual programs
  View out;                         // add_noise: x_t; residual_scale: the scaled residual
  View target;                      // add_noise, optional
  View cotangent;                   // residual_dot
  const void* row_scale = nullptr;  // residual_scale: one Acc a row

  template <class Body>
  void each_view(Body&& body) const {
    for (const View* view : {&x0, &prediction, &out, &target, &cotangent}) body(*view);
  }
};

namespace {

template <class Cells>
struct NoisingRow {
  Cells cells;
#define PYFOLD_COLUMN(name) \
  PYFOLD_HD auto name() const { return cells[kNoising_##name]; }
  PYFOLD_NOISING_COLUMNS(PYFOLD_COLUMN)
#undef PYFOLD_COLUMN
};

static_assert(kNoisingColumns <= kMaxColumns);

template <class Tile>
using NoisingRowOf = NoisingRow<typename Tile::Cells>;

template <class Tile>
PYFOLD_HD void add_noise(Tile& tile, const NoisingArgs& args) {
  using Register = typename Tile::Register;
  const NoisingRowOf<Tile> c{tile.cells(args.table, kNoisingColumns)};
  Register x0, epsilon, y, target;
  tile.load(x0, args.x0);
  tile.load(epsilon, Noise{args.noise});
  tile.let(y, c.alpha() * x0 + c.sigma() * epsilon);
  if (args.target) {
    tile.keep(y);
    tile.write(args.target, target, c.target_x0() * x0 + c.target_epsilon() * epsilon);
  }
  tile.store(args.out, y);
}

// prediction - target, the target made from x0 and the seeds on the way.
template <class Tile>
PYFOLD_HD void residual(Tile& tile, const NoisingArgs& args, const NoisingRowOf<Tile>& c,
                        typename Tile::Register& out) {
  typename Tile::Register target, prediction;
  tile.let(target, c.target_x0() * args.x0 + c.target_epsilon() * Noise{args.noise});
  tile.load(prediction, args.prediction);
  tile.subtract(out, prediction, target);
}

// weight * sum of residual^2 over the lanes.
template <class Tile>
PYFOLD_HD double residual_square(Tile& tile, const NoisingArgs& args) {
  const NoisingRowOf<Tile> c{tile.cells(args.table, kNoisingColumns)};
  typename Tile::Register r;
  residual(tile, args, c, r);
  return static_cast<double>(static_cast<typename Tile::Acc>(c.weight())) * tile.dot(r, r);
}

// weight * sum of cotangent * residual over the lanes.
template <class Tile>
PYFOLD_HD double residual_dot(Tile& tile, const NoisingArgs& args) {
  const NoisingRowOf<Tile> c{tile.cells(args.table, kNoisingColumns)};
  typename Tile::Register r, cotangent;
  residual(tile, args, c, r);
  tile.load(cotangent, args.cotangent);
  return static_cast<double>(static_cast<typename Tile::Acc>(c.weight())) * tile.dot(cotangent, r);
}

// out = row_scale * weight * residual.
template <class Tile>
PYFOLD_HD void residual_scale(Tile& tile, const NoisingArgs& args) {
  using Acc = typename Tile::Acc;
  const NoisingRowOf<Tile> c{tile.cells(args.table, kNoisingColumns)};
  typename Tile::Register r, scaled;
  residual(tile, args, c, r);
  const Acc scale = static_cast<const Acc*>(args.row_scale)[tile.row()] * c.weight();
  tile.write(args.out, scaled, scale * r);
}

}  // namespace
}  // namespace pyfold

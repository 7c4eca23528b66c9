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
};

namespace {

template <class A>
struct NoisingRow {
#define PYFOLD_FIELD(name) A name;
  PYFOLD_NOISING_COLUMNS(PYFOLD_FIELD)
#undef PYFOLD_FIELD
};

template <class A>
PYFOLD_HD NoisingRow<A> noising_row(const Table& table, int64_t sample) {
  const double* row = table_row(table, kNoisingColumns, sample);
  return {
#define PYFOLD_READ(name) column<A>(row, kNoising_##name),
      PYFOLD_NOISING_COLUMNS(PYFOLD_READ)
#undef PYFOLD_READ
  };
}

template <class Tile>
PYFOLD_HD void add_noise(Tile& tile, const NoisingArgs& args) {
  using Register = typename Tile::Register;
  const auto c = noising_row<typename Tile::Acc>(args.table, tile.row());
  Register x0, epsilon, y, target;
  tile.load(x0, args.x0);
  tile.noise(epsilon, args.noise);
  Sum<Tile> sum{y};
  sum.add(tile, c.alpha, x0, true);
  sum.add(tile, c.sigma, epsilon, true);
  sum.finish(tile);
  // Before out is stored, which may be x0 itself.
  if (args.target) {
    Sum<Tile> target_sum{target};
    target_sum.add(tile, c.target_x0, x0, true);
    target_sum.add(tile, c.target_epsilon, epsilon, true);
    target_sum.finish(tile);
    tile.store(args.target, target);
  }
  tile.store(args.out, y);
}

// prediction - target, the target made from x0 and the seeds on the way.
template <class Tile>
PYFOLD_HD void residual(Tile& tile, const NoisingArgs& args, const NoisingRow<typename Tile::Acc>& c,
                        typename Tile::Register& out) {
  typename Tile::Register operand;
  Sum<Tile> target{out};
  if (c.target_x0 != 0) {
    tile.load(operand, args.x0);
    target.add(tile, c.target_x0, operand);
  }
  if (c.target_epsilon != 0 && args.noise.seeds != nullptr) {
    tile.noise(operand, args.noise);
    target.add(tile, c.target_epsilon, operand);
  }
  target.finish(tile);
  tile.load(operand, args.prediction);
  tile.subtract_from(out, operand);
}

// weight * sum of residual^2 over the lanes.
template <class Tile>
PYFOLD_HD double residual_square(Tile& tile, const NoisingArgs& args) {
  const auto c = noising_row<typename Tile::Acc>(args.table, tile.row());
  typename Tile::Register r;
  residual(tile, args, c, r);
  return static_cast<double>(c.weight) * tile.dot(r, r);
}

// weight * sum of cotangent * residual over the lanes.
template <class Tile>
PYFOLD_HD double residual_dot(Tile& tile, const NoisingArgs& args) {
  const auto c = noising_row<typename Tile::Acc>(args.table, tile.row());
  typename Tile::Register r, cotangent;
  residual(tile, args, c, r);
  tile.load(cotangent, args.cotangent);
  return static_cast<double>(c.weight) * tile.dot(cotangent, r);
}

// out = row_scale * weight * residual.
template <class Tile>
PYFOLD_HD void residual_scale(Tile& tile, const NoisingArgs& args) {
  using Acc = typename Tile::Acc;
  const auto c = noising_row<Acc>(args.table, tile.row());
  typename Tile::Register r, scaled;
  residual(tile, args, c, r);
  tile.scale(scaled, static_cast<const Acc*>(args.row_scale)[tile.row()] * c.weight, r);
  tile.store(args.out, scaled);
}

}  // namespace
}  // namespace pyfold

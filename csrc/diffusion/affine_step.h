#pragma once

#include "diffusion/program.h"

// One step of any sampler that is affine in its inputs, which are all of them (docs/architecture.md):
//   e  = sum_j g_j model_j
//   x0 = clip(p x + q e, clip_min, clip_max)
//   u  = r x + s e + t x0
//   x' = a x + a_base base + sum_i b_i history_i + c_x0 x0 + c_u u + sum_k d_k noise(n_k)
// with x' the next state, u the next history entry and c_in x' the next model input.
namespace pyfold {

constexpr int kMaxModels = 3;
constexpr int kMaxHistory = 4;
constexpr int kMaxNoises = 3;

// clang-format off
#define PYFOLD_AFFINE_STEP_COLUMNS(X)                           \
  X(a) X(a_base) X(b1) X(b2) X(b3) X(b4) X(c_x0) X(c_u)         \
  X(d1) X(d2) X(d3) X(g1) X(g2) X(g3)                           \
  X(p) X(q) X(clip_min) X(clip_max) X(r) X(s) X(t) X(c_in)      \
  X(n1) X(n2) X(n3)
// clang-format on

enum AffineStepColumn : int {
#define PYFOLD_ENUM(name) kStep_##name,
  PYFOLD_AFFINE_STEP_COLUMNS(PYFOLD_ENUM)
#undef PYFOLD_ENUM
      kStepColumns
};

struct AffineStepArgs {
  Geometry geometry;
  Table table;
  NoiseSource noise;
  View x;
  View models[kMaxModels];
  View base;
  View history[kMaxHistory];
  View out;
  View history_out;
  View next_input;
  View x0_out;

  template <class Body>
  void each_view(Body&& body) const {
    for (const View* view : {&x, &base, &out, &history_out, &next_input, &x0_out}) body(*view);
    for (const View& model : models) body(model);
    for (const View& entry : history) body(entry);
  }
};

namespace {

template <class Cells>
struct StepRow {
  Cells cells;
#define PYFOLD_COLUMN(name) \
  PYFOLD_HD auto name() const { return cells[kStep_##name]; }
  PYFOLD_AFFINE_STEP_COLUMNS(PYFOLD_COLUMN)
#undef PYFOLD_COLUMN
};

static_assert(kStepColumns <= kMaxColumns);
static_assert(kMaxModels == 3 && kMaxHistory == 4 && kMaxNoises == 3, "affine_step writes its sums out");

template <class Tile>
PYFOLD_HD void affine_step(Tile& tile, const AffineStepArgs& args) {
  const StepRow<typename Tile::Cells> c{tile.cells(args.table, kStepColumns)};
  const View *model = args.models, *history = args.history;
  const bool needs_u = c.c_u() != 0 || args.history_out;
  const bool needs_x0 = c.c_x0() != 0 || (needs_u && c.t() != 0) || args.x0_out;

  typename Tile::Register x, e, x0, u, y, input;
  tile.load(x, args.x);
  tile.let(e, c.g1() * model[0] + c.g2() * model[1] + c.g3() * model[2]);
  if (needs_x0) tile.let(x0, clip(c.p() * x + c.q() * e, c.clip_min(), c.clip_max()));
  if (needs_u) tile.let(u, c.r() * x + c.s() * e + c.t() * x0);
  if (args.history_out) tile.keep(u);
  if (args.x0_out) tile.keep(x0);
  tile.write(args.out, y,
             c.a() * x + c.a_base() * args.base + c.b1() * history[0] + c.b2() * history[1] + c.b3() * history[2] +
                 c.b4() * history[3] + c.c_x0() * x0 + c.c_u() * u + c.d1() * Noise{args.noise, c.n1().cell} +
                 c.d2() * Noise{args.noise, c.n2().cell} + c.d3() * Noise{args.noise, c.n3().cell});
  if (args.history_out) tile.store(args.history_out, u);
  if (args.x0_out) tile.store(args.x0_out, x0);
  if (args.next_input) tile.write(args.next_input, input, c.c_in() * y);
}

}  // namespace
}  // namespace pyfold

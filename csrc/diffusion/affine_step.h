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
};

namespace {

template <class Tile>
PYFOLD_HD void affine_step(Tile& tile, const AffineStepArgs& args) {
  using Acc = typename Tile::Acc;
  using Register = typename Tile::Register;
  const double* row = table_row(args.table, kStepColumns, tile.row());
  const auto c = [row](int i) { return column<Acc>(row, i); };

  // What is loaded lies in a register each where that spares a pass, else in one.
  constexpr int kOperands = Tile::kPassesCount ? kMaxModels + 1 + kMaxHistory : 1;
  Register x, e, operands[kOperands], x0, u, y;
  const auto operand = [&](int i) -> Register& { return operands[Tile::kPassesCount ? i : 0]; };
  tile.load(x, args.x);
  if (c(kStep_g1) == 1 && args.models[0] && !args.models[1]) {
    tile.load(e, args.models[0]);
  } else {
    Sum<Tile> sum{e};
    PYFOLD_UNROLL
    for (int j = 0; j < kMaxModels; ++j) {
      if (args.models[j] && c(kStep_g1 + j) != 0) {
        tile.load(operand(j), args.models[j]);
        sum.add(tile, c(kStep_g1 + j), operand(j), true);
      }
    }
    sum.finish(tile);
  }

  const bool needs_u = c(kStep_c_u) != 0 || args.history_out;
  const bool needs_x0 = c(kStep_c_x0) != 0 || (needs_u && c(kStep_t) != 0) || args.x0_out;
  if (needs_x0) {
    Sum<Tile> sum{x0};
    sum.add(tile, c(kStep_p), x, true);
    sum.add(tile, c(kStep_q), e, true);
    sum.finish_clipped(tile, c(kStep_clip_min), c(kStep_clip_max));
  }
  if (needs_u) {
    bool shared = false;
    if constexpr (Tile::kPassesCount) {
      // u is often what the model said, or x0. What is stored must not lie in an operand, which an output may be.
      const bool of_e = c(kStep_s) == 1 && c(kStep_t) == 0 && !args.history_out;
      const bool of_x0 = c(kStep_t) == 1 && c(kStep_s) == 0;
      shared = c(kStep_r) == 0 && (of_e || of_x0);
      if (shared) tile.share(u, of_e ? e : x0);
    }
    if (!shared) {
      Sum<Tile> sum{u};
      sum.add(tile, c(kStep_r), x, true);
      sum.add(tile, c(kStep_s), e, true);
      if (needs_x0) sum.add(tile, c(kStep_t), x0, true);
      sum.finish(tile);
    }
  }

  if constexpr (Tile::kPassesCount) {
    // x' is computed where it will lie, unless it lies in something that is still to be read.
    bool apart = args.out.data != args.base.data;
    for (int j = 0; j < kMaxModels; ++j) apart = apart && args.out.data != args.models[j].data;
    for (int i = 0; i < kMaxHistory; ++i) apart = apart && args.out.data != args.history[i].data;
    if (apart) tile.aim(y, args.out);
  }
  Sum<Tile> next{y};
  next.add(tile, c(kStep_a), x, true);
  if (args.base && c(kStep_a_base) != 0) {
    tile.load(operand(kMaxModels), args.base);
    next.add(tile, c(kStep_a_base), operand(kMaxModels), true);
  }
  PYFOLD_UNROLL
  for (int i = 0; i < kMaxHistory; ++i) {
    if (args.history[i] && c(kStep_b1 + i) != 0) {
      tile.load(operand(kMaxModels + 1 + i), args.history[i]);
      next.add(tile, c(kStep_b1 + i), operand(kMaxModels + 1 + i), true);
    }
  }
  if (needs_x0) next.add(tile, c(kStep_c_x0), x0, true);
  if (needs_u) next.add(tile, c(kStep_c_u), u, true);
  if (args.noise.seeds != nullptr) {
    PYFOLD_UNROLL
    for (int k = 0; k < kMaxNoises; ++k) {
      if (c(kStep_d1 + k) != 0) {
        tile.noise(operand(k), args.noise, row != nullptr ? noise_counter(row[kStep_n1 + k]) : 0);
        next.add(tile, c(kStep_d1 + k), operand(k), true);
      }
    }
  }
  next.finish(tile);

  tile.store(args.out, y);
  if (args.history_out) tile.store(args.history_out, u);
  if (args.x0_out) tile.store(args.x0_out, x0);
  if (args.next_input) {
    if constexpr (Tile::kPassesCount) tile.aim(operand(0), args.next_input);
    tile.scale(operand(0), c(kStep_c_in), y);
    tile.store(args.next_input, operand(0));
  }
}

}  // namespace
}  // namespace pyfold

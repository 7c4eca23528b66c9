#pragma once

#include <stdint.h>

#include "core/macros.h"
#include "folds/abs.h"
#include "folds/box.h"
#include "folds/fold.h"
#include "folds/householder.h"
#include "folds/leaky.h"
#include "folds/maxmin.h"

// A program of folds on the rows of a unit, one after another in registers: sorts (networks of swaps), wedges (folds at
// lines), boxes, spheres and whole kaleidoscopes are such programs. Each instruction remembers which side it found in a
// plane of bits. Given the bits every instruction but the spheres is affine, so the same program run in order is the
// derivative, in reverse and transposed the gradient, and in reverse and inverted the way back.
namespace pyfold {

// The instructions, in the order of their codes: OP(name, constants, planes, pair), how many constants and planes of
// bits one has in a unit of r values; pair: it takes the values i and j. Each line: what it does to the values x of a
// unit, and its constants. Bits are strict comparisons: at a tie, and for NaN, an instruction is the identity.
#define PYFOLD_FOLD_OPS(OP)                                                                                      \
  OP(Mirror, 1, 1, false)                  /* x_i = c + |x_i - c|; c */                                          \
  OP(Leaky, 1, 1, false)                   /* x_i = a x_i where x_i < 0; a */                                    \
  OP(Box, 1, 1, false)                     /* x_i = 2 clamp(x_i, -L, L) - x_i; L */                              \
  OP(BoxSides, 1, 2, false)                /* the same, keeping the side; L */                                   \
  OP(Tri, 2, 1, false)                     /* mirrors at c + L (2 k + 1) for every integer k; L, c */            \
  OP(TriCell, 2, kCellPlanes, false)       /* the same, keeping k; L, c */                                       \
  OP(Swap, 0, 1, true)                     /* (x_i, x_j) = (min, max) */                                         \
  OP(Line, 2, 1, true)                     /* reflect (x_i, x_j) at <n, x> = 0 where <n, x> > 0; n_i, n_j */     \
  OP(Plane, r + 1, 1, false)               /* reflect x at <n, x> = b where <n, x> > b; n, b */                  \
  OP(Crelu, 0, 1, false)                   /* (x_0, x_1) = (max(x_0, 0), max(-x_0, 0)): one value in, two out */ \
  OP(Affine, shifts ? r + 1 : 1, 0, false) /* x = a x + t; a, and where j is 1 t */                              \
  OP(Matrix, 2 * r * r + r, 0, false)      /* x = M x + t; M, its inverse, t */                                  \
  OP(Clamp, 1, r, false)                   /* x = clamp(x, -a, a); a */                                          \
  OP(Sphere, 2, 2, false)                  /* |x| < R0: x R^2 / R0^2; else |x| < R: x R^2 / |x|^2; R^2, R0^2 */  \
  OP(Ball, 1, 1, false)                    /* |x| > R: x R^2 / |x|^2; R^2 */

#define PYFOLD_FOLD_OP(name, constants, planes, pair) k##name,
enum class FoldOp : int16_t { PYFOLD_FOLD_OPS(PYFOLD_FOLD_OP) };
#undef PYFOLD_FOLD_OP

enum class SequenceMode : int { kForward, kTangent, kAdjoint, kInverse };

struct FoldInstruction {
  int16_t op, i, j;
  int16_t constant;  // the first of its constants; from kParameters on, an index into the parameters
  int16_t plane;     // the first of its planes
};

// All of it travels as one kernel argument, 4 KB at most.
constexpr int kMaxInstructions = 280;
constexpr int kMaxConstants = 104;
constexpr int kParameters = 1024;
constexpr int kMaxRows = 192;
constexpr int kMaxMatrixRows = 6;
constexpr int kCellPlanes = 32;

struct SequenceArgs {
  FoldLayout in_layout, out_layout;  // the same units; they differ in their rows where the program has a crelu
  DType dtype = DType::kFloat32;
  SequenceMode mode = SequenceMode::kForward;
  const void* in = nullptr;  // x, a cotangent, a tangent, or an output
  void* out = nullptr;
  const void* bias = nullptr;        // accumulation type, one a channel; optional, forward only
  const void* parameters = nullptr;  // accumulation type; optional
  uint8_t* bits = nullptr;           // [groups, planes, bytes_per_group]; null: do not remember
  int planes = 0;
  int count = 0;
  FoldInstruction instructions[kMaxInstructions];
  double constants[kMaxConstants];
};
static_assert(sizeof(SequenceArgs) <= 4096 - 8);

namespace {

// Most rows that a unit has on the way.
inline int sequence_rows(const SequenceArgs& args) {
  return args.in_layout.components > args.out_layout.components ? args.in_layout.components
                                                                : args.out_layout.components;
}

// Runs a program on a tile of units, all in step. A Tile has
//   A* row(r)                 row r of the units, in memory of its own; A* scratch() one row more
//   int lanes()               units; what lies in lanes past the last unit does not matter
//   uint8_t* flags(k)         room for a flag of each unit, k in {0, 1}
//   write(plane, flags), read(plane, flags)   the bits; write may do nothing
template <class A, class Tile>
class SequenceRunner {
 public:
  PYFOLD_HD SequenceRunner(const SequenceArgs& args, Tile& tile)
      : args_(args), tile_(tile), rows_(args.in_layout.components), n_(tile.lanes()) {}

  PYFOLD_HD void run() {
    const bool reverse = args_.mode == SequenceMode::kAdjoint || args_.mode == SequenceMode::kInverse;
    for (int k = 0; k < args_.count; ++k) apply(args_.instructions[reverse ? args_.count - 1 - k : k]);
  }

 private:
  PYFOLD_HD bool forward() const { return args_.mode == SequenceMode::kForward; }
  PYFOLD_HD bool inverse() const { return args_.mode == SequenceMode::kInverse; }
  PYFOLD_HD bool adjoint() const { return args_.mode == SequenceMode::kAdjoint; }
  // Derivatives leave constant terms out.
  PYFOLD_HD bool affine() const { return forward() || inverse(); }

  PYFOLD_HD A constant(const FoldInstruction& in, int k) const {
    const int at = in.constant + k;
    return at < kParameters ? static_cast<A>(args_.constants[at])
                            : static_cast<const A*>(args_.parameters)[at - kParameters];
  }

  PYFOLD_HD void apply(const FoldInstruction& in) {
    switch (static_cast<FoldOp>(in.op)) {
      case FoldOp::kMirror:
        return mirror(in);
      case FoldOp::kLeaky:
        return leaky(in);
      case FoldOp::kBox:
      case FoldOp::kBoxSides:
        return box(in, static_cast<FoldOp>(in.op) == FoldOp::kBoxSides);
      case FoldOp::kTri:
      case FoldOp::kTriCell:
        return tri(in, static_cast<FoldOp>(in.op) == FoldOp::kTriCell);
      case FoldOp::kSwap:
        return swap(in);
      case FoldOp::kLine:
        return line(in);
      case FoldOp::kPlane:
        return plane(in);
      case FoldOp::kCrelu:
        return crelu(in);
      case FoldOp::kAffine:
        return scale_and_shift(in);
      case FoldOp::kMatrix:
        return matrix(in);
      case FoldOp::kClamp:
        return clamp(in);
      case FoldOp::kSphere:
        return sphere(in);
      case FoldOp::kBall:
        return ball(in);
    }
  }

  PYFOLD_HD void mirror(const FoldInstruction& in) {
    const MirrorFold<A> fold{constant(in, 0)};
    if (!inverse()) return fold_values(in, fold);
    const int n = n_;
    A* __restrict v = tile_.row(in.i);
    uint8_t* __restrict m = tile_.flags(0);
    tile_.read(in.plane, m);
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) v[l] = fold.folded(v[l], m[l] != 0);  // a mirror undoes itself
  }

  PYFOLD_HD void leaky(const FoldInstruction& in) {
    const LeakyFold<A> fold{constant(in, 0)};
    if (!inverse()) return fold_values(in, fold);
    const int n = n_;
    A* __restrict v = tile_.row(in.i);
    uint8_t* __restrict m = tile_.flags(0);
    tile_.read(in.plane, m);
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) v[l] = fold.undone(v[l], m[l] != 0);
  }

  PYFOLD_HD void box(const FoldInstruction& in, bool sides) {
    const BoxFold<A> fold{constant(in, 0)};
    if (!sides) return fold_values(in, fold);
    const int n = n_;
    A* __restrict v = tile_.row(in.i);
    uint8_t* __restrict above = tile_.flags(0);
    uint8_t* __restrict below = tile_.flags(1);
    const A length = fold.length;
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) {
        above[l] = fold.above(v[l]);
        below[l] = fold.below(v[l]);
      }
      tile_.write(in.plane, above);
      tile_.write(in.plane + 1, below);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) v[l] = fold.folded(v[l], true);
      return;
    }
    tile_.read(in.plane, above);
    tile_.read(in.plane + 1, below);
    const A shift = inverse() ? length + length : A{0};
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) {
      const A high = above[l] != 0 ? shift - v[l] : v[l];
      v[l] = below[l] != 0 ? -shift - v[l] : high;
    }
  }

  template <class Fold>
  PYFOLD_HD void fold_values(const FoldInstruction& in, const Fold fold) {
    const int n = n_;
    A* __restrict v = tile_.row(in.i);
    uint8_t* __restrict m = tile_.flags(0);
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) m[l] = fold.side(v[l]);
      tile_.write(in.plane, m);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) v[l] = fold.folded(v[l], m[l] != 0);
    } else {
      tile_.read(in.plane, m);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) v[l] = fold.linear(v[l], m[l] != 0);
    }
  }

  // x - c = 2 L k + y' in the cells of length 2 L about c, turned over where k is odd.
  PYFOLD_HD void tri(const FoldInstruction& in, bool cells) {
    const int n = n_;
    A* __restrict v = tile_.row(in.i);
    A* __restrict cell = tile_.scratch();
    uint8_t* __restrict m = tile_.flags(0);
    const A length = constant(in, 0), centre = constant(in, 1), twice = length + length, period = twice + twice;
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) {
        const A u = v[l] - centre;
        const A turns = floor_of((u + length) / period);
        const A within = (u + length) - period * turns;
        m[l] = within > twice;
        cell[l] = m[l] != 0 ? turns + turns + A{1} : turns + turns;
        v[l] = m[l] != 0 ? centre + (length + (twice - within)) : centre + (within - length);
      }
      if (cells) {
        write_cells(in.plane, cell);
      } else {
        tile_.write(in.plane, m);
      }
      return;
    }
    tile_.read(in.plane, m);  // the lowest bit of k
    if (!inverse()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) v[l] = m[l] != 0 ? -v[l] : v[l];
      return;
    }
    read_cells(in.plane, cell);
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) {
      const A y = v[l] - centre;
      v[l] = centre + (twice * cell[l] + (m[l] != 0 ? -y : y));
    }
  }

  PYFOLD_HD void swap(const FoldInstruction& in) {
    const A none[1] = {};
    fold_pairs<MaxMinFold>(in, none);
  }

  PYFOLD_HD void line(const FoldInstruction& in) {
    const A normal[2] = {constant(in, 0), -constant(in, 1)};  // householder's: sine, cosine
    fold_pairs<HouseholderFold>(in, normal);
  }

  template <class Fold, int kParameters>
  PYFOLD_HD void fold_pairs(const FoldInstruction& in, const A (&parameters)[kParameters]) {
    const int n = n_;
    A* __restrict a = tile_.row(in.i);
    A* __restrict b = tile_.row(in.j);
    uint8_t* __restrict m = tile_.flags(0);
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) {
        const A v[2] = {a[l], b[l]};
        m[l] = Fold::side(v, parameters);
      }
      tile_.write(in.plane, m);
    } else {
      tile_.read(in.plane, m);
    }
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) {
      A v[2] = {a[l], b[l]};
      Fold::reflect(v, m[l] != 0, parameters);
      a[l] = v[0];
      b[l] = v[1];
    }
  }

  PYFOLD_HD void plane(const FoldInstruction& in) {
    const int n = n_;
    A* __restrict side = tile_.scratch();
    uint8_t* __restrict m = tile_.flags(0);
    const A start = affine() ? -constant(in, rows_) : A{0};
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) side[l] = start;
    for (int r = 0; r < rows_; ++r) {
      const A* __restrict v = tile_.row(r);
      const A normal = constant(in, r);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) side[l] = side[l] + normal * v[l];
    }
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) m[l] = side[l] > 0;
      tile_.write(in.plane, m);
    } else {
      tile_.read(in.plane, m);
    }
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) side[l] = m[l] != 0 ? side[l] + side[l] : A{0};
    for (int r = 0; r < rows_; ++r) {
      A* __restrict v = tile_.row(r);
      const A normal = constant(in, r);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) v[l] = v[l] - side[l] * normal;
    }
  }

  PYFOLD_HD void crelu(const FoldInstruction& in) {
    const int n = n_;
    A* __restrict a = tile_.row(0);
    A* __restrict b = tile_.row(1);
    uint8_t* __restrict m = tile_.flags(0);
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) m[l] = a[l] < 0;
      tile_.write(in.plane, m);
    } else {
      tile_.read(in.plane, m);
    }
    if (adjoint() || inverse()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) a[l] = m[l] != 0 ? -b[l] : a[l];
      rows_ = 1;
      return;
    }
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) {
      b[l] = m[l] != 0 ? -a[l] : A{0};
      a[l] = m[l] != 0 ? A{0} : a[l];
    }
    rows_ = 2;
  }

  PYFOLD_HD void scale_and_shift(const FoldInstruction& in) {
    const int n = n_;
    const A factor = constant(in, 0);
    for (int r = 0; r < rows_; ++r) {
      A* __restrict v = tile_.row(r);
      const A shift = in.j != 0 && affine() ? constant(in, 1 + r) : A{0};
      if (inverse()) {
        PYFOLD_UNROLL
        for (int l = 0; l < n; ++l) v[l] = (v[l] - shift) / factor;
      } else {
        PYFOLD_UNROLL
        for (int l = 0; l < n; ++l) v[l] = factor * v[l] + shift;
      }
    }
  }

  PYFOLD_HD void matrix(const FoldInstruction& in) {
    const int n = n_;
    const int matrix = inverse() ? rows_ * rows_ : 0;
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) {
      A x[kMaxMatrixRows], y[kMaxMatrixRows];
      for (int r = 0; r < rows_; ++r) {
        x[r] = tile_.row(r)[l];
        if (inverse()) x[r] = x[r] - constant(in, 2 * rows_ * rows_ + r);
      }
      for (int r = 0; r < rows_; ++r) {
        y[r] = forward() ? constant(in, 2 * rows_ * rows_ + r) : A{0};
        for (int c = 0; c < rows_; ++c) {
          y[r] = y[r] + constant(in, matrix + (adjoint() ? c * rows_ + r : r * rows_ + c)) * x[c];
        }
      }
      for (int r = 0; r < rows_; ++r) tile_.row(r)[l] = y[r];
    }
  }

  PYFOLD_HD void clamp(const FoldInstruction& in) {
    const int n = n_;
    uint8_t* __restrict m = tile_.flags(0);
    const A high = constant(in, 0), low = -high;
    for (int r = 0; r < rows_; ++r) {
      A* __restrict v = tile_.row(r);
      if (forward()) {
        PYFOLD_UNROLL
        for (int l = 0; l < n; ++l) {
          const A y = v[l];
          m[l] = (y > high) | (y < low);
          v[l] = y > high ? high : y < low ? low : y;
        }
        tile_.write(in.plane + r, m);
      } else {
        tile_.read(in.plane + r, m);
        PYFOLD_UNROLL
        for (int l = 0; l < n; ++l) v[l] = m[l] != 0 ? A{0} : v[l];
      }
    }
  }

  // scratch: the squared length of each unit.
  PYFOLD_HD void squared_length() {
    const int n = n_;
    A* __restrict square = tile_.scratch();
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) square[l] = 0;
    for (int r = 0; r < rows_; ++r) {
      const A* __restrict v = tile_.row(r);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) square[l] = square[l] + v[l] * v[l];
    }
  }

  PYFOLD_HD void scale_each(const A* __restrict factor) {
    const int n = n_;
    for (int r = 0; r < rows_; ++r) {
      A* __restrict v = tile_.row(r);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) v[l] = factor[l] * v[l];
    }
  }

  // Forward and inverse alone: its derivative is no map of the bits.
  PYFOLD_HD void sphere(const FoldInstruction& in) {
    const int n = n_;
    A* __restrict square = tile_.scratch();
    uint8_t* __restrict inner = tile_.flags(0);
    uint8_t* __restrict between = tile_.flags(1);
    const A outer_square = constant(in, 0), inner_square = constant(in, 1);
    squared_length();
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) {
        inner[l] = square[l] < inner_square;
        between[l] = (square[l] < outer_square) & !(square[l] < inner_square);
      }
      tile_.write(in.plane, inner);
      tile_.write(in.plane + 1, between);
    } else {
      tile_.read(in.plane, inner);
      tile_.read(in.plane + 1, between);
    }
    const A middle = forward() ? outer_square / inner_square : inner_square / outer_square;
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) {
      const A inversion = between[l] != 0 ? outer_square / square[l] : A{1};
      square[l] = inner[l] != 0 ? middle : inversion;
    }
    scale_each(square);
  }

  PYFOLD_HD void ball(const FoldInstruction& in) {
    const int n = n_;
    A* __restrict square = tile_.scratch();
    uint8_t* __restrict m = tile_.flags(0);
    const A bound = constant(in, 0);
    squared_length();
    if (forward()) {
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) m[l] = square[l] > bound;
      tile_.write(in.plane, m);
    } else {
      tile_.read(in.plane, m);
    }
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) square[l] = m[l] != 0 ? bound / square[l] : A{1};
    scale_each(square);
  }

  // |k| and, in the last plane, its sign; beyond 31 bits no float still knows where in its cell it lies.
  PYFOLD_HD void write_cells(int plane, const A* __restrict cell) {
    const int n = n_;
    uint8_t* __restrict m = tile_.flags(0);
    for (int bit = 0; bit < kCellPlanes; ++bit) {
      const bool sign = bit == kCellPlanes - 1;
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) m[l] = sign ? cell[l] < 0 : magnitude(cell[l]) >> bit & 1u;
      tile_.write(plane + bit, m);
    }
  }
  PYFOLD_HD void read_cells(int plane, A* __restrict cell) {
    const int n = n_;
    uint8_t* __restrict m = tile_.flags(1);
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) cell[l] = 0;
    A weight = 1;
    for (int bit = 0; bit < kCellPlanes - 1; ++bit) {
      tile_.read(plane + bit, m);
      PYFOLD_UNROLL
      for (int l = 0; l < n; ++l) cell[l] = cell[l] + (m[l] != 0 ? weight : A{0});
      weight = weight + weight;
    }
    tile_.read(plane + kCellPlanes - 1, m);
    PYFOLD_UNROLL
    for (int l = 0; l < n; ++l) cell[l] = m[l] != 0 ? -cell[l] : cell[l];
  }

  PYFOLD_HD static float floor_of(float x) { return __builtin_floorf(x); }
  PYFOLD_HD static double floor_of(double x) { return __builtin_floor(x); }
  PYFOLD_HD static uint32_t magnitude(A k) {
    constexpr A bound = A{2147483520};
    const A size = k < 0 ? -k : k;
    return static_cast<uint32_t>(size < bound ? size : size == size ? bound : A{0});
  }

  const SequenceArgs& args_;
  Tile& tile_;
  int rows_;
  int n_;
};

}  // namespace
}  // namespace pyfold

#pragma once

#include <stdint.h>

#include "core/dtype.h"
#include "core/macros.h"

// What every fold has. A fold reflects x at a hyperplane where x lies on its far side: y = x - 2 m <n, x> n with the
// bit m = [<n, x> > 0], strictly, so that at a tie it is the identity and its Jacobian is orthogonal at every input;
// NaN counts as a tie. A fold kind is a header of its own with a type that offers
//   kComponents   values folded together: 1, or 2 for a pair of channels
//   kParameters   numbers it needs for each unit of kComponents values
//   kMovesBits    whether it turns signs or exchanges values, and computes nothing
//   side(v, p)    the bit of the values v
//   reflect(v, m, p)  the linear map that the fold is at a unit with this bit; it is symmetric, so it is also its own
//                     transpose
// and everything else (memory, bits, bias, gain, clamp, derivatives) is shared: the kernels of one reflection on the
// CPU and the GPU, and the interpreter of programs (sequence.h) instantiate the same type. The folds of single values
// that are affine (abs.h, leaky.h, box.h) hold their constants and offer side(v), folded(v, m) and its derivative
// linear(v, m).
namespace pyfold {

enum class FoldKind : int { kAbs, kMaxMin, kHouseholder };  // reflections.h has their names and functors

// A tensor in memory order as [outer, channels, inner]. A unit is one value, or several channels: neighbours, or one
// of each half. Units count in memory order; they split into groups of equal size whose bits start on a byte.
struct FoldLayout {
  int64_t outer = 0, channels = 0, inner = 0;
  bool halves = false;
  int components = 1;
  int64_t groups = 1;

  PYFOLD_HD int64_t units() const { return outer * channels * inner / components; }
  PYFOLD_HD int64_t units_per_group() const { return units() / groups; }
  PYFOLD_HD int64_t bytes_per_group() const { return (units_per_group() + 7) / 8; }
  // Unit indices that share a parameter.
  PYFOLD_HD int64_t lines() const { return channels / components; }
};

// Where the values of unit t lie: the first at offset, each next one apart; run units follow at step.
struct FoldRun {
  int64_t offset, apart, step, run;
};

namespace {

PYFOLD_HD FoldRun fold_run(const FoldLayout& layout, int64_t t) {
  if (layout.components == 1) return {t, 0, 1, layout.units() - t};
  if (layout.halves) {
    const int64_t half = layout.channels / 2 * layout.inner;
    const int64_t row = t / half, within = t - row * half;
    return {row * 2 * half + within, half, 1, half - within};
  }
  const int64_t block = t / layout.inner, within = t - block * layout.inner;
  if (layout.inner == 1) return {layout.components * t, 1, layout.components, layout.units() - t};
  return {block * layout.components * layout.inner + within, layout.inner, 1, layout.inner - within};
}

// The parameter line of unit t.
PYFOLD_HD int64_t fold_line(const FoldLayout& layout, int64_t t) { return t / layout.inner % layout.lines(); }

// The channel of component k of line j.
PYFOLD_HD int64_t fold_channel(const FoldLayout& layout, int64_t line, int k) {
  if (layout.components == 1) return line;
  return layout.halves ? line + k * layout.lines() : layout.components * line + k;
}

}  // namespace

struct FoldArgs {
  FoldKind kind = FoldKind::kAbs;
  FoldLayout layout;
  DType dtype = DType::kFloat32;
  const void* in = nullptr;     // x, or a cotangent
  const void* other = nullptr;  // fold_angle_grad: the fold's output
  void* out = nullptr;
  const void* bias = nullptr;         // accumulation type, one a channel; optional
  const void* angle = nullptr;        // accumulation type, one a line; householder
  const void* half_sine = nullptr;    // sin(angle / 2), cos(angle / 2) of each line, where a launcher has
  const void* half_cosine = nullptr;  // them ready (the CPU's)
  const void* weight = nullptr;       // accumulation type, one a line; fold_rotate
  double gain = 1;
  double clamp = 0;            // a bound on |y|; 0: none
  uint8_t* bits = nullptr;     // [groups, bytes_per_group]
  uint8_t* clamped = nullptr;  // [groups, components, bytes_per_group]; only with clamp
  bool transpose = false;      // backward of backward: reflect first, then gain and clamp
};

}  // namespace pyfold

#pragma once

#include "core/macros.h"
#include "folds/fold.h"

namespace pyfold {
namespace {

// The plane folded at a learned line through the origin (Singla, Singla and Feizi 2022): n = (sin(t/2), -cos(t/2)) for
// the angle t. t = 0 gives (x, |y|), t = pi/2 gives maxmin. Parameters: sin(t/2), cos(t/2).
struct HouseholderFold {
  static constexpr int kComponents = 2;
  static constexpr int kParameters = 2;
  static constexpr bool kMovesBits = false;

  template <class A>
  static PYFOLD_HD bool side(const A (&v)[2], const A* p) {
    return distance(v, p) > 0;
  }
  template <class A>
  static PYFOLD_HD void reflect(A (&v)[2], bool m, const A* p) {
    const A s = distance(v, p);
    const A twice = m ? s + s : A{0};
    v[0] = v[0] - twice * p[0];
    v[1] = v[1] + twice * p[1];
  }

 private:
  template <class A>
  static PYFOLD_HD A distance(const A (&v)[2], const A* p) {
    return v[0] * p[0] - v[1] * p[1];
  }
};

// d<g, F(x)>/dt of one unit, from the output y = F(x): the rotation that the reflection turns by.
template <class A>
PYFOLD_HD A angle_derivative(const A (&g)[2], const A (&y)[2], bool m) {
  return m ? g[1] * y[0] - g[0] * y[1] : A{0};
}

// Its adjoint: m w (-v2, v1).
template <class A>
PYFOLD_HD void rotate(A (&v)[2], bool m, A weight) {
  const A scale = m ? weight : A{0};
  const A first = -(scale * v[1]);
  v[1] = scale * v[0];
  v[0] = first;
}

}  // namespace
}  // namespace pyfold

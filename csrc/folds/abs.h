#pragma once

#include "core/macros.h"
#include "folds/fold.h"

namespace pyfold {
namespace {

// The line folded at a point: y = c + |x - c|. n = -1.
template <class A>
struct MirrorFold {
  A at;

  PYFOLD_HD bool side(A v) const { return v < at; }
  PYFOLD_HD A folded(A v, bool m) const { return m ? (at + at) - v : v; }
  PYFOLD_HD A linear(A v, bool m) const { return m ? A{0} - v : v; }
};

// The mirror at 0: y = |x|. Its derivative turns signs, that of a zero too.
struct AbsFold {
  static constexpr int kComponents = 1;
  static constexpr int kParameters = 0;
  static constexpr bool kMovesBits = true;

  template <class A>
  static PYFOLD_HD bool side(const A (&v)[1], const A*) {
    return MirrorFold<A>{0}.side(v[0]);
  }
  template <class A>
  static PYFOLD_HD void reflect(A (&v)[1], bool m, const A*) {
    v[0] = m ? -v[0] : v[0];
  }
};

}  // namespace
}  // namespace pyfold

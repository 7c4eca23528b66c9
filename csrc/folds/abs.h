#pragma once

#include "core/macros.h"
#include "folds/fold.h"

namespace pyfold {
namespace {

// y = |x|: the negative half line laid on the positive one. n = -1.
struct AbsFold {
  static constexpr int kComponents = 1;
  static constexpr int kParameters = 0;

  template <class A>
  static PYFOLD_HD bool fold(A (&v)[1], const A*) {
    const bool m = v[0] < 0;
    v[0] = m ? -v[0] : v[0];
    return m;
  }
  template <class A>
  static PYFOLD_HD void reflect(A (&v)[1], bool m, const A*) {
    v[0] = m ? -v[0] : v[0];
  }
};

}  // namespace
}  // namespace pyfold

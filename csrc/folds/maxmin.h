#pragma once

#include "core/macros.h"
#include "folds/fold.h"

namespace pyfold {
namespace {

// y = (min, max): the plane folded at its diagonal (Anil, Lucas and Grosse 2019, GroupSort2). n = (1, -1) / sqrt(2).
struct MaxMinFold {
  static constexpr int kComponents = 2;
  static constexpr int kParameters = 0;

  template <class A>
  static PYFOLD_HD bool fold(A (&v)[2], const A* p) {
    const bool m = v[0] > v[1];
    reflect(v, m, p);
    return m;
  }
  template <class A>
  static PYFOLD_HD void reflect(A (&v)[2], bool m, const A*) {
    const A first = m ? v[1] : v[0];
    v[1] = m ? v[0] : v[1];
    v[0] = first;
  }
};

}  // namespace
}  // namespace pyfold

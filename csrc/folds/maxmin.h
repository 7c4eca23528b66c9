#pragma once

#include "core/macros.h"
#include "folds/fold.h"

namespace pyfold {
namespace {

// y = (min, max): the plane folded at its diagonal (Anil, Lucas and Grosse 2019, GroupSort2). n = (1, -1) / sqrt(2).
struct MaxMinFold {
  static constexpr int kComponents = 2;
  static constexpr int kParameters = 0;
  static constexpr bool kMovesBits = true;

  template <class A>
  static PYFOLD_HD bool side(const A (&v)[2], const A*) {
    return v[0] > v[1];
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

#pragma once

#include "core/macros.h"

namespace pyfold {
namespace {

// The line folded at both ends of a box: y = 2 clamp(x, -L, L) - x.
template <class A>
struct BoxFold {
  A length;

  PYFOLD_HD bool above(A v) const { return v > length; }
  PYFOLD_HD bool below(A v) const { return v < -length; }
  PYFOLD_HD bool side(A v) const { return above(v) | below(v); }
  PYFOLD_HD A folded(A v, bool) const {
    const A high = above(v) ? (length + length) - v : v;
    return below(v) ? -(length + length) - v : high;
  }
  PYFOLD_HD A linear(A v, bool m) const { return m ? A{0} - v : v; }
};

}  // namespace
}  // namespace pyfold

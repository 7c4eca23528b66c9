#pragma once

#include "core/macros.h"

namespace pyfold {
namespace {

// y = max(x, 0) + a min(x, 0).
template <class A>
struct LeakyFold {
  A slope;

  PYFOLD_HD bool side(A v) const { return v < 0; }
  PYFOLD_HD A folded(A v, bool m) const { return m ? slope * v : v; }
  PYFOLD_HD A linear(A v, bool m) const { return folded(v, m); }
  PYFOLD_HD A undone(A v, bool m) const { return m ? v / slope : v; }
};

}  // namespace
}  // namespace pyfold

#pragma once

#include "core/macros.h"

// Element-wise arithmetic on n lanes: n is 8 registers of a GPU thread, or a tile of a CPU core's first cache level. A
// fused op is a short program of these, so its roundings, and with them its bits, are the same on every device.
namespace pyfold {
namespace {

template <class A>
PYFOLD_HD void fill(A* __restrict out, A value, int n) {
  PYFOLD_UNROLL
  for (int i = 0; i < n; ++i) out[i] = value;
}

template <class A>
PYFOLD_HD void scale(A* __restrict out, A coefficient, const A* __restrict x, int n) {
  PYFOLD_UNROLL
  for (int i = 0; i < n; ++i) out[i] = coefficient * x[i];
}

template <class A>
PYFOLD_HD void add_scaled(A* __restrict out, A coefficient, const A* __restrict x, int n) {
  PYFOLD_UNROLL
  for (int i = 0; i < n; ++i) out[i] = out[i] + coefficient * x[i];
}

template <class A>
PYFOLD_HD void subtract(A* __restrict out, const A* __restrict x, const A* __restrict y, int n) {
  PYFOLD_UNROLL
  for (int i = 0; i < n; ++i) out[i] = x[i] - y[i];
}

// Written so that NaN stays NaN.
template <class A>
PYFOLD_HD A clipped(A x, A low, A high) {
  const A above = x < low ? low : x;
  return above > high ? high : above;
}

template <class A>
PYFOLD_HD void clip(A* __restrict out, A low, A high, int n) {
  PYFOLD_UNROLL
  for (int i = 0; i < n; ++i) out[i] = clipped(out[i], low, high);
}

}  // namespace
}  // namespace pyfold

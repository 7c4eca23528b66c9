#pragma once

#include "core/macros.h"

// sin(t / 2) and cos(t / 2), the normal of a line of angle t / 2: the same bits on every device. In float64 they are
// within 0.7 units in the last place for |t| up to 2^31, and for every finite t on the unit circle (beyond, for an
// angle that differs); float32 is float64 rounded once more. The polynomials are minimax on [-pi/4, pi/4] in relative
// error, 2^-57 and 2^-63.
namespace pyfold {
namespace {

PYFOLD_HD double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// An angle: x + quarter pi / 2.
struct Turned {
  double x, quarter;
};

namespace quarters {
constexpr double kPer = 0x1.45f306dc9c883p-1;  // 2 / pi; then pi / 2 in three parts
constexpr double kFirst = 0x1.921fb54442d18p+0, kSecond = 0x1.1a62633145c07p-54, kThird = -0x1.f1976b7ed8fbcp-110;
constexpr double kMost = 0x1p30;  // |x| up to here is exact below

PYFOLD_HD double nearest(double x) { return __builtin_floor(x * kPer + 0.5); }
PYFOLD_HD double modulo_four(double n) { return n - 4 * __builtin_floor(0.25 * n); }
}  // namespace quarters

// t / 2, turned back until it is small; infinities become NaN.
PYFOLD_HD Turned half_of(double t) {
  using namespace quarters;
  Turned half{0.5 * t, 0};
  while (__builtin_fabs(half.x) >= kMost) {
    const double n = nearest(half.x);
    half.quarter = half.quarter + modulo_four(n);
    half.x = fused(-n, kThird, fused(-n, kSecond, fused(-n, kFirst, half.x)));
  }
  return half;
}

// Without a branch, so that a CPU's loop vectorises.
PYFOLD_HD void sine_and_cosine(Turned angle, double& sine, double& cosine) {
  using namespace quarters;
  const double n = nearest(angle.x), quarter = modulo_four(angle.quarter + modulo_four(n));
  // x - n pi/2 = r + low with |r| up to pi/4.
  const double reduced = fused(-n, kFirst, angle.x);  // exact: a multiple of 2^-53, at most 1
  const double step = n * kSecond, step_low = fused(n, kSecond, -step);
  const double r = reduced - step;
  const double sum = r + step, lost = (reduced - sum) - (step - (sum - r));  // reduced - step - r
  const double low = lost - step_low - n * kThird;
  const double z = r * r, z_low = fused(r, r, -z);
  double p = 0x1.5d8fa335ebff2p-33;
  p = fused(p, z, -0x1.ae5e59f5ebe92p-26);
  p = fused(p, z, 0x1.71de356712d60p-19);
  p = fused(p, z, -0x1.a01a019bfd18ap-13);
  p = fused(p, z, 0x1.111111110f7cap-7);
  p = fused(p, z, -0x1.5555555555548p-3);
  const double s = z == 0 ? r : r + fused(r * z, p, low * (1 - 0.5 * z));  // a zero keeps its sign
  double q = -0x1.8fa465f907bc0p-37;
  q = fused(q, z, 0x1.1ee9d752a9788p-29);
  q = fused(q, z, -0x1.27e4f7ea37c0ap-22);
  q = fused(q, z, 0x1.a01a019c83914p-16);
  q = fused(q, z, -0x1.6c16c16c14f8ap-10);
  q = fused(q, z, 0x1.555555555554bp-5);
  const double half = 0.5 * z, near = 1 - half;
  const double c = near + (((1 - near) - half) + fused(z * z, q, -fused(r, low, 0.5 * z_low)));
  const bool odd = (quarter == 1) | (quarter == 3);
  const double across = odd ? c : s, along = odd ? s : c;
  sine = quarter >= 2 ? -across : across;
  cosine = (quarter == 1) | (quarter == 2) ? -along : along;
}

template <class A>
PYFOLD_HD void half_angle(A t, A& sine, A& cosine) {
  double wide_sine, wide_cosine;
  sine_and_cosine(half_of(static_cast<double>(t)), wide_sine, wide_cosine);
  sine = static_cast<A>(wide_sine);
  cosine = static_cast<A>(wide_cosine);
}

}  // namespace
}  // namespace pyfold

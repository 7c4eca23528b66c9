#pragma once

#include <stdint.h>

namespace pyfold::cuda {
namespace {

// n / divisor for n from 0: by a multiplication where they fit 32 bits. What it multiplies by is made once on the host.
template <class I>
struct Divisor {
  I divisor = 1;
  uint32_t multiplier = 0;
  int shift = 0;

  Divisor() = default;
  // For numerators below limit.
  Divisor(int64_t by, int64_t limit) : divisor(static_cast<I>(by < 1 ? 1 : by)) {
    if (limit > INT32_MAX || divisor == 1 || divisor > limit) return;
    while ((int64_t{2} << shift) < divisor) ++shift;  // 2^shift < divisor <= 2^(shift + 1)
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (32 + shift)) + static_cast<uint64_t>(divisor) - 1) /
                                       static_cast<uint64_t>(divisor));
  }

  __device__ I operator()(I n) const {
    if (multiplier != 0) return multiplied(n);
    if constexpr (sizeof(I) == 4) return n < divisor ? 0 : n;  // divisor is 1, or above every n
    return divisor == 1 ? n : n / divisor;
  }
  // For a divisor from 2 to a limit that fits 32 bits.
  __device__ I multiplied(I n) const { return static_cast<I>(__umulhi(static_cast<uint32_t>(n), multiplier) >> shift); }
};

}  // namespace
}  // namespace pyfold::cuda

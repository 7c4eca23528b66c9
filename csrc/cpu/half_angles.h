#pragma once

#include <cmath>
#include <vector>

#include "cpu/folds.h"

namespace pyfold::cpu {

// sin and cos of the half angles, rounded once from float64, for the lines of one call.
struct HalfAngles {
  std::vector<double> wide;
  std::vector<float> narrow;

  explicit HalfAngles(FoldArgs& args) {
    if (args.angle == nullptr) return;
    const int64_t lines = args.layout.lines();
    const bool is_double = args.dtype == DType::kFloat64;
    (is_double ? wide.resize(2 * lines) : narrow.resize(2 * lines));
    for (int64_t i = 0; i < lines; ++i) {
      const double half = 0.5 * (is_double ? static_cast<const double*>(args.angle)[i]
                                           : static_cast<double>(static_cast<const float*>(args.angle)[i]));
      if (is_double) {
        wide[i] = std::sin(half);
        wide[lines + i] = std::cos(half);
      } else {
        narrow[i] = static_cast<float>(std::sin(half));
        narrow[lines + i] = static_cast<float>(std::cos(half));
      }
    }
    if (is_double) {
      args.half_sine = wide.data();
      args.half_cosine = wide.data() + lines;
    } else {
      args.half_sine = narrow.data();
      args.half_cosine = narrow.data() + lines;
    }
  }
};

}  // namespace pyfold::cpu

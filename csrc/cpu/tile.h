#pragma once

#include "core/lanes.h"
#include "cpu/convert.h"
#include "cpu/diffusion.h"
#include "cpu/noise.h"
#include "diffusion/program.h"

namespace pyfold {
namespace {

// Lanes are worked on in any order, so an output may be the memory of an input.
#if defined(__clang__)
#define PYFOLD_IN_PLACE _Pragma("clang loop vectorize(assume_safety)")
#else
#define PYFOLD_IN_PLACE _Pragma("GCC ivdep")
#endif

// Lanes are worked in whole groups; those past the end of a row hold whatever, and nobody reads it.
constexpr int kLaneGroup = 16;

// diffusion/program.h's Tile on a CPU: up to kTileLanes elements of a row, registers in the first cache level.
template <class A>
class CpuTile {
 public:
  using Acc = A;

  // A pass over a tile costs as much as its arithmetic, so sums put two terms into one.
  static constexpr bool kPassesCount = true;

  // data points to buffer, or straight into memory where an operand needs no conversion. Results are written to target:
  // buffer, or the memory of an output.
  struct Register {
    const A* data;
    A* target = buffer;
    alignas(64) A buffer[cpu::kTileLanes + kNoiseSlack];
  };

  // far: operands come from beyond the caches.
  CpuTile(const Geometry& geometry, int64_t task, bool far)
      : geometry_(geometry), far_(far), row_(task / cpu::tiles_per_row(geometry)) {
    start_ = (task - row_ * cpu::tiles_per_row(geometry)) * cpu::kTileLanes;
    const int64_t left = geometry.numel - start_;
    count_ = left < cpu::kTileLanes ? static_cast<int>(left) : cpu::kTileLanes;
    lanes_ = (count_ + kLaneGroup - 1) & ~(kLaneGroup - 1);
  }

  int64_t row() const { return row_; }

  void load(Register& out, const View& view) {
    out.data = out.target = out.buffer;
    with_type<A>(view.dtype, view.data, [&](auto* memory) {
      auto* first = memory + row_ * view.row_stride;
      if (view.flat) {
        if (far_) prefetch_next(first + start_);
        if (sizeof(*memory) == sizeof(A) && count_ == lanes_) {
          out.data = reinterpret_cast<const A*>(first + start_);
          return;
        }
        load_run(first + start_, out.buffer, count_);
      } else {
        each_run(view, [&](int64_t at, int64_t offset, int64_t stride, int run) {
          for (int i = 0; i < run; ++i) out.buffer[at + i] = static_cast<A>(widen(first[offset + i * stride]));
        });
      }
      for (int i = count_; i < lanes_; ++i) out.buffer[i] = 0;
    });
  }

  // What is computed into the register from now on lies where store(view, ...) would put it, if it may.
  void aim(Register& out, const View& view) {
    out.target = out.buffer;
    if (!view.flat || count_ != lanes_ || view.dtype != (sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32)) return;
    out.target = static_cast<A*>(view.data) + row_ * view.row_stride + start_;
  }

  // out = x, for as long as x stays.
  void share(Register& out, const Register& x) { out.data = x.data; }

  void store(const View& view, const Register& value) {
    if (value.target != value.buffer && value.data == value.target) return;
    with_type<A>(view.dtype, view.data, [&](auto* memory) {
      auto* first = memory + row_ * view.row_stride;
      if (view.flat) {
        store_run(value.data, first + start_, count_);
      } else {
        each_run(view, [&](int64_t at, int64_t offset, int64_t stride, int run) {
          for (int i = 0; i < run; ++i) narrow(value.data[at + i], first[offset + i * stride]);
        });
      }
    });
  }

  void noise(Register& out, const NoiseSource& source, uint32_t offset = 0) {
    const NoiseKey key = noise_key(source, row_, offset);
    const NormalStream normals(key);
    const Window& window = source.window;
    const int64_t element = window.base + start_;
    if constexpr (sizeof(A) == sizeof(float)) {
      if (window.flat && element % kNormalsPerBlock == 0) {
        if (!NormalStream::ends_with(element, count_)) out.target = out.buffer;
        out.data = out.target;
        return normals.run(element, count_, out.target);
      }
    }
    out.data = out.target = out.buffer;
    alignas(64) float scratch[cpu::kTileLanes + kNoiseSlack];
    if (window.flat) {
      normals.run(element, count_, scratch);
      load_run(scratch + element % kNormalsPerBlock, out.buffer, lanes_);
    } else {
      each_run(window, [&](int64_t at, int64_t offset, int64_t stride, int run) {
        if (stride == 1) {
          normals.run(window.base + offset, run, scratch);
          load_run(scratch + (window.base + offset) % kNormalsPerBlock, out.buffer + at, run);
        } else {
          for (int i = 0; i < run; ++i) {
            const int64_t one = window.base + offset + i * stride;
            float four[kNormalsPerBlock];
            normal_block(key, static_cast<uint64_t>(one) / kNormalsPerBlock, four);
            out.buffer[at + i] = static_cast<A>(four[one % kNormalsPerBlock]);
          }
        }
      });
    }
  }

  // Out may be the memory of x itself, which restrict would deny.
  void fill(Register& out, A value) { pyfold::fill(written(out), value, lanes()); }
  void scale(Register& out, A coefficient, const Register& x) {
    A* to = out.target;
    const A* from = x.data;
    PYFOLD_IN_PLACE
    for (int i = 0, n = lanes(); i < n; ++i) to[i] = coefficient * from[i];
    out.data = to;
  }
  // out (+)= the sum of up to kTermsOfPass terms, rounded as if they were added one after the other.
  void sum(Register& out, bool more, int count, const A* coefficients, const Register* const* terms) {
    sum_by(out, more, count, coefficients, terms, [](A value) { return value; });
  }
  void sum_clipped(Register& out, bool more, int count, const A* coefficients, const Register* const* terms, A low,
                   A high) {
    sum_by(out, more, count, coefficients, terms, [=](A value) { return clipped(value, low, high); });
  }
  void subtract_from(Register& out, const Register& x) {
    own(out);
    pyfold::subtract_from(out.target, x.data, lanes());
  }
  void clip(Register& out, A low, A high) {
    own(out);
    pyfold::clip(out.target, low, high, lanes());
  }

  // In kLaneGroup partial sums, then a tree: one order for every instruction set.
  double dot(const Register& x, const Register& y) {
    A partial[kLaneGroup] = {};
    const int whole = count_ & ~(kLaneGroup - 1);
    for (int i = 0; i < whole; i += kLaneGroup) {
      for (int j = 0; j < kLaneGroup; ++j) partial[j] += x.data[i + j] * y.data[i + j];
    }
    for (int j = 0; j < count_ - whole; ++j) partial[j] += x.data[whole + j] * y.data[whole + j];
    for (int width = kLaneGroup / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) partial[j] += partial[j + width];
    }
    return static_cast<double>(partial[0]);
  }

 private:
  template <class After>
  void sum_by(Register& out, bool more, int count, const A* coefficients, const Register* const* terms, After after) {
    A* to = out.target;
    if (more) own(out);
    switch (more ? -count : count) {
      case 1:
        pass<1, false>(to, coefficients, terms, after);
        break;
      case 2:
        pass<2, false>(to, coefficients, terms, after);
        break;
      case 3:
        pass<3, false>(to, coefficients, terms, after);
        break;
      case -1:
        pass<1, true>(to, coefficients, terms, after);
        break;
      case -2:
        pass<2, true>(to, coefficients, terms, after);
        break;
      case -3:
        pass<3, true>(to, coefficients, terms, after);
        break;
    }
    out.data = to;
  }
  template <int kTerms, bool kMore, class After>
  void pass(A* to, const A* coefficients, const Register* const* terms, After after) {
    const A *x = terms[0]->data, *y = terms[kTerms > 1 ? 1 : 0]->data, *z = terms[kTerms > 2 ? 2 : 0]->data;
    const A of_x = coefficients[0], of_y = coefficients[1], of_z = coefficients[2];
    PYFOLD_IN_PLACE
    for (int i = 0, n = lanes(); i < n; ++i) {
      A value = of_x * x[i];
      if constexpr (kMore) value = to[i] + value;
      if constexpr (kTerms > 1) value = value + of_y * y[i];
      if constexpr (kTerms > 2) value = value + of_z * z[i];
      to[i] = after(value);
    }
  }

  int lanes() const { return lanes_ & ~(kLaneGroup - 1); }
  A* written(Register& out) {
    out.data = out.target;
    return out.target;
  }
  // A register that still points into an operand's memory gets lanes of its own before they change.
  void own(Register& out) {
    if (out.data == out.target) return;
    __builtin_memcpy(out.target, out.data, sizeof(A) * lanes());
    out.data = out.target;
  }

  // The next tile's share of an operand, as far as the second cache level, where it does not delay what is loaded now.
  template <class T>
  static void prefetch_next(const T* memory) {
    const char* next = reinterpret_cast<const char*>(memory + cpu::kTileLanes);
    for (size_t line = 0; line < cpu::kTileLanes * sizeof(T); line += 64) __builtin_prefetch(next + line, 0, 2);
  }

  // body(lane, offset, stride, run) for each stretch of the tile along the innermost dimension.
  template <class Strided, class Body>
  void each_run(const Strided& strided, Body&& body) {
    const int inner = geometry_.ndim - 1;
    const int64_t size = inner < 0 ? 1 : geometry_.size[inner];
    const int64_t stride = inner < 0 ? 0 : strided.stride[inner];
    for (int at = 0; at < count_;) {
      const int64_t within = (start_ + at) % size;
      const int64_t left = size - within;
      const int run = left < count_ - at ? static_cast<int>(left) : count_ - at;
      body(at, offset_of(strided, geometry_, start_ + at), stride, run);
      at += run;
    }
  }

  const Geometry& geometry_;
  const bool far_;
  int64_t row_;
  int64_t start_;
  int count_;
  int lanes_;
};

}  // namespace
}  // namespace pyfold

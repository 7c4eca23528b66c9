#pragma once

#include <type_traits>

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
  using Cells = TableCells<A>;

  // data points to buffer, to another register's, or straight into an operand's memory where it needs no conversion.
  struct Register {
    const A* data = nullptr;
    bool in_operand;
    alignas(64) A buffer[cpu::kTileLanes + kNoiseSlack];

    template <class C>
    friend Term<C, Register> operator*(C coefficient, const Register& value) {
      return {coefficient, value};
    }
  };

  // far: operands come from beyond the caches.
  CpuTile(const Geometry& geometry, int64_t task, bool far, NormalStream& normals)
      : geometry_(geometry), far_(far), normals_(normals), row_(task / cpu::tiles_per_row(geometry)) {
    start_ = (task - row_ * cpu::tiles_per_row(geometry)) * cpu::kTileLanes;
    const int64_t left = geometry.numel - start_;
    count_ = left < cpu::kTileLanes ? static_cast<int>(left) : cpu::kTileLanes;
    lanes_ = (count_ + kLaneGroup - 1) & ~(kLaneGroup - 1);
  }

  int64_t row() const { return row_; }
  Cells cells(const Table& table, int64_t columns) const { return {table_row(table, columns, row_)}; }

  void load(Register& out, const View& view) {
    if (const A* lanes = in_place(view)) {
      if (far_) prefetch_next(lanes);
      out.data = lanes;
      out.in_operand = true;
    } else {
      convert(out, view);
    }
  }

  void store(const View& view, const Register& value) {
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

  void load(Register& out, const Noise& noise) { draw(out, out.buffer, noise); }

  template <class Terms>
  void let(Register& out, const Terms& sum) {
    evaluate(out, out.buffer, nullptr, sum, as_it_is);
  }
  template <class Terms, class C>
  void let(Register& out, const Clipped<Terms, C>& sum) {
    const A low = sum.low, high = sum.high;
    evaluate(out, out.buffer, nullptr, sum.terms, [=](A value) { return clipped(value, low, high); });
  }
  // Computed where it will lie, unless a later pass reads that.
  template <class Terms>
  void write(const View& view, Register& out, const Terms& sum) {
    A* place = in_place(view);
    evaluate(out, place != nullptr ? place : out.buffer, &view, sum, as_it_is);
    if (out.data == place) return;
    keep(out);
    store(view, out);
  }
  void write(const View& view, Register& out, const Noise& noise) {
    A* place = in_place(view);
    draw(out, place != nullptr ? place : out.buffer, noise);
    if (out.data != place) store(view, out);
  }

  void keep(Register& out) {
    if (!out.in_operand) return;
    __builtin_memcpy(out.buffer, out.data, sizeof(A) * lanes());
    set(out, out.buffer);
  }

  void subtract(Register& out, const Register& x, const Register& y) {
    const A *from = x.data, *by = y.data;
    PYFOLD_IN_PLACE
    for (int i = 0, n = lanes(); i < n; ++i) out.buffer[i] = from[i] - by[i];
    set(out, out.buffer);
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
  // A pass over a tile costs as much as its arithmetic: up to this many terms are one pass, rounded as one by one.
  static constexpr int kTermsOfPass = 3;

  struct Pass {
    explicit Pass(A* to) : to(to) {}
    A* to;
    bool more = false;  // to holds the sum of the terms before
    int count = 0;
    A coefficients[kTermsOfPass];
    const Register* terms[kTermsOfPass];
  };

  static A as_it_is(A value) { return value; }

  static void set(Register& out, const A* data) {
    out.data = data;
    out.in_operand = false;
  }

  // A single term of coefficient 1 takes no pass: out is another name for its value. Where to is not out's buffer it is
  // view's memory, which must hold no partial sum while terms lie there.
  template <class Terms, class After>
  void evaluate(Register& out, A* to, const View* view, const Terms& sum, const After& after) {
    constexpr bool kChanges = !std::is_same_v<After, A(A)>;
    Register loaded[kTermsOfPass];
    Pass pass(to);
    auto add = [&](const auto& term) {
      if (term.dropped()) return;
      if (pass.count == kTermsOfPass) {
        if (!pass.more && to != out.buffer && others_lie_in(sum, *view, to)) pass.to = to = out.buffer;
        run(pass, as_it_is);
      }
      Register& own = pass.more || pass.count > 0 ? loaded[pass.count] : out;
      pass.coefficients[pass.count] = term.coefficient;
      pass.terms[pass.count++] = fetch(own, term.value);
    };
    sum.each(add);
    if (pass.count == 0) {
      pyfold::fill(to, after(A{0}), lanes());
    } else if (!kChanges && !pass.more && pass.count == 1 && pass.coefficients[0] == 1) {
      out.data = pass.terms[0]->data;
      out.in_operand = pass.terms[0]->in_operand;
      return;
    } else {
      run(pass, after);
    }
    set(out, to);
  }

  // Whether a term after the first may lie in memory.
  template <class Terms>
  static bool others_lie_in(const Terms& sum, const View& memory, const A* lanes) {
    bool first = true, found = false;
    auto look = [&](const auto& term) {
      if constexpr (requires { term.value.buffer; }) {
        found = found || (!first && term.value.data == lanes);
      } else if constexpr (requires { term.value.dtype; }) {
        found = found || (!first && term.value.data == memory.data);
      }
      first = false;
    };
    sum.each(look);
    return found;
  }

  const Register* fetch(Register&, const Register& value) { return &value; }
  template <class Operand>
  const Register* fetch(Register& own, const Operand& value) {
    load(own, value);
    return &own;
  }

  template <class After>
  void run(Pass& pass, const After& after) {
    switch (pass.more ? -pass.count : pass.count) {
      case 1:
        add_up<1, false>(pass, after);
        break;
      case 2:
        add_up<2, false>(pass, after);
        break;
      case 3:
        add_up<3, false>(pass, after);
        break;
      case -1:
        add_up<1, true>(pass, after);
        break;
      case -2:
        add_up<2, true>(pass, after);
        break;
      case -3:
        add_up<3, true>(pass, after);
        break;
    }
    pass.more = true;
    pass.count = 0;
  }
  template <int kTerms, bool kMore, class After>
  void add_up(const Pass& pass, After after) {
    A* to = pass.to;
    const A *x = pass.terms[0]->data, *y = pass.terms[kTerms > 1 ? 1 : 0]->data,
            *z = pass.terms[kTerms > 2 ? 2 : 0]->data;
    const A of_x = pass.coefficients[0], of_y = pass.coefficients[kTerms > 1 ? 1 : 0],
            of_z = pass.coefficients[kTerms > 2 ? 2 : 0];
    PYFOLD_IN_PLACE
    for (int i = 0, n = lanes(); i < n; ++i) {
      A value = of_x * x[i];
      if constexpr (kMore) value = to[i] + value;
      if constexpr (kTerms > 1) value = value + of_y * y[i];
      if constexpr (kTerms > 2) value = value + of_z * z[i];
      to[i] = after(value);
    }
  }

  // Where the lanes of a register would lie in the operand's memory; null where they need conversion.
  A* in_place(const View& view) const {
    if (!view.flat || count_ != lanes_ || view.dtype != (sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32)) {
      return nullptr;
    }
    return static_cast<A*>(view.data) + row_ * view.row_stride + start_;
  }

  void convert(Register& out, const View& view) {
    set(out, out.buffer);
    with_type<A>(view.dtype, view.data, [&](auto* memory) {
      auto* first = memory + row_ * view.row_stride;
      if (view.flat) {
        if (far_) prefetch_next(first + start_);
        load_run(first + start_, out.buffer, count_);
      } else {
        each_run(view, [&](int64_t at, int64_t offset, int64_t stride, int run) {
          for (int i = 0; i < run; ++i) out.buffer[at + i] = static_cast<A>(widen(first[offset + i * stride]));
        });
      }
      for (int i = count_; i < lanes_; ++i) out.buffer[i] = 0;
    });
  }

  // In to, if the lanes can lie there. Out of line: its registers would be saved by every step, also one that draws
  // nothing.
  __attribute__((noinline)) void draw(Register& out, A* to, const Noise& noise) {
    const NoiseSource& source = noise.source;
    const NoiseKey key = noise.key(row_);
    normals_.set(key);
    const Window& window = source.window;
    const int64_t element = window.base + start_;
    if constexpr (sizeof(A) == sizeof(float)) {
      if (window.flat && element % kNormalsPerBlock == 0) {
        if (!normals_.ends_with(element, count_)) to = out.buffer;
        set(out, to);
        return normals_.run(element, count_, to);
      }
    }
    set(out, out.buffer);
    alignas(64) float scratch[cpu::kTileLanes + kNoiseSlack];
    if (window.flat) {
      normals_.run(element, count_, scratch);
      load_run(scratch + element % kNormalsPerBlock, out.buffer, lanes_);
    } else {
      each_run(window, [&](int64_t at, int64_t offset, int64_t stride, int run) {
        if (stride == 1) {
          normals_.run(window.base + offset, run, scratch);
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

  int lanes() const { return lanes_ & ~(kLaneGroup - 1); }

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
  NormalStream& normals_;
  int64_t row_;
  int64_t start_;
  int count_;
  int lanes_;
};

}  // namespace
}  // namespace pyfold

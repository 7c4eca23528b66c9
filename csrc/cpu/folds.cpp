#include "cpu/folds.h"

#include "cpu/fold_tile.h"
#include "folds/half_angle.h"
#include "folds/reflections.h"

namespace pyfold {
namespace {

template <class A, class Fold>
struct Parameters {
  alignas(64) A value[Fold::kParameters > 0 ? Fold::kParameters : 1][kFoldTile];

  Parameters(const FoldArgs& args, const FoldTile<A>& tile) {
    if constexpr (Fold::kParameters == 2) {
      tile.spread(value[0], [&](int64_t line) { return static_cast<const A*>(args.half_sine)[line]; });
      tile.spread(value[1], [&](int64_t line) { return static_cast<const A*>(args.half_cosine)[line]; });
    }
  }
};

template <class A, class Fold>
inline void fold_lanes(const A* const (&in)[Fold::kComponents], A (*__restrict out)[kFoldTile],
                       uint8_t* __restrict flags, const Parameters<A, Fold>& parameters, int count) {
  for (int i = 0; i < count; ++i) {
    A v[Fold::kComponents];
    A p[Fold::kParameters + 1];
    for (int k = 0; k < Fold::kComponents; ++k) v[k] = in[k][i];
    for (int k = 0; k < Fold::kParameters; ++k) p[k] = parameters.value[k][i];
    const bool m = Fold::side(v, p);
    Fold::reflect(v, m, p);
    flags[i] = m;
    for (int k = 0; k < Fold::kComponents; ++k) out[k][i] = v[k];
  }
}

template <class A, class Fold>
inline void reflect_lanes(const A* const (&in)[Fold::kComponents], A (*__restrict out)[kFoldTile],
                          const uint8_t* __restrict flags, const Parameters<A, Fold>& parameters, int count) {
  for (int i = 0; i < count; ++i) {
    A v[Fold::kComponents];
    A p[Fold::kParameters + 1];
    for (int k = 0; k < Fold::kComponents; ++k) v[k] = in[k][i];
    for (int k = 0; k < Fold::kParameters; ++k) p[k] = parameters.value[k][i];
    Fold::reflect(v, flags[i] != 0, p);
    for (int k = 0; k < Fold::kComponents; ++k) out[k][i] = v[k];
  }
}

template <class A>
inline void multiply(A* __restrict values, A factor, int count) {
  for (int i = 0; i < count; ++i) values[i] = values[i] * factor;
}

// gain, and zero where the output was clamped: the diagonal part of the derivative.
template <class A, class Fold>
inline void scale_and_mask(const FoldArgs& args, const FoldTile<A>& tile, A (*values)[kFoldTile]) {
  for (int k = 0; k < Fold::kComponents; ++k) {
    if (args.gain != 1) multiply(values[k], static_cast<A>(args.gain), tile.count());
    if (args.clamped == nullptr) continue;
    alignas(64) uint8_t flags[kFoldTile];
    tile.read_flags(tile.plane(args.clamped, k, Fold::kComponents), flags);
    for (int i = 0; i < tile.count(); ++i) values[k][i] = flags[i] != 0 ? A{0} : values[k][i];
  }
}

// Such a fold alone, and its derivative, need no conversion and no copy.
bool moves_bits(const FoldArgs& args) {
  return with_reflection(args.kind, [](auto fold) { return decltype(fold)::kMovesBits; }) && args.bias == nullptr &&
         args.gain == 1 && args.clamp == 0 && args.clamped == nullptr;
}

// abs turns signs, a bit of memory.
bool turns_signs(const FoldArgs& args) { return args.layout.components == 1 && moves_bits(args); }

// Word: an unsigned integer as wide as the element; infinity: the bits of minus infinity.
template <class Word>
void sign_tile(const FoldArgs& args, int64_t index, bool forward, Word infinity) {
  constexpr int kShift = 8 * sizeof(Word) - 1;
  constexpr Word kSign = Word{1} << kShift;
  const FoldTile<float> tile(args.layout, args.dtype, kFoldTile, index);
  const int count = tile.count();
  const Word* __restrict in = static_cast<const Word*>(args.in) + tile.first_unit();
  Word* __restrict out = static_cast<Word*>(args.out) + tile.first_unit();
  // Below zero: neither a zero nor NaN.
  const auto negative = [&](Word word) { return static_cast<Word>((word > kSign) & (word <= infinity)); };
  if (forward && args.bits == nullptr) {
    for (int i = 0; i < count; ++i) out[i] = static_cast<Word>(in[i] ^ (negative(in[i]) << kShift));
    return;
  }
  alignas(64) uint8_t flags[kFoldTile];
  if (forward) {
    for (int i = count & ~7; i < ((count + 7) & ~7); ++i) flags[i] = 0;
    for (int i = 0; i < count; ++i) {
      const Word m = negative(in[i]);
      flags[i] = static_cast<uint8_t>(m);
      out[i] = static_cast<Word>(in[i] ^ (m << kShift));
    }
    tile.write_flags(flags, tile.plane(args.bits, 0, 1));
  } else {
    tile.read_flags(tile.plane(args.bits, 0, 1), flags);
    for (int i = 0; i < count; ++i) out[i] = static_cast<Word>(in[i] ^ (static_cast<Word>(flags[i]) << kShift));
  }
}

void sign_tiles(const FoldArgs& args, int64_t begin, int64_t end, bool forward) {
  for (int64_t i = begin; i < end; ++i) {
    switch (args.dtype) {
      case DType::kFloat32:
        sign_tile<uint32_t>(args, i, forward, 0xFF800000u);
        break;
      case DType::kFloat64:
        sign_tile<uint64_t>(args, i, forward, 0xFFF0000000000000u);
        break;
      case DType::kBFloat16:
        sign_tile<uint16_t>(args, i, forward, 0xFF80u);
        break;
      case DType::kFloat16:
        sign_tile<uint16_t>(args, i, forward, 0xFC00u);
        break;
    }
  }
}

// a > b of half floats without widening them: magnitudes with their sign, so that both zeros are one; NaN is not above.
struct HalfAbove {
  int16_t infinity;  // its bits
  bool operator()(uint16_t a, uint16_t b) const {
    const int16_t size_a = static_cast<int16_t>(a & 0x7FFF), size_b = static_cast<int16_t>(b & 0x7FFF);
    const int16_t key_a = static_cast<int16_t>(a) < 0 ? static_cast<int16_t>(-size_a) : size_a;
    const int16_t key_b = static_cast<int16_t>(b) < 0 ? static_cast<int16_t>(-size_b) : size_b;
    return (key_a > key_b) & (size_a <= infinity) & (size_b <= infinity);
  }
};
struct Above {
  template <class T>
  bool operator()(T a, T b) const {
    const T v[2] = {a, b};
    return MaxMinFold::side(v, &a);
  }
};

// maxmin exchanges values as they lie in memory.
bool exchanges_values(const FoldArgs& args) {
  const FoldLayout& layout = args.layout;
  return layout.components == 2 && (layout.halves || layout.inner > 1) && moves_bits(args);
}

template <class T, class Compare>
void exchange_tile(const FoldArgs& args, int64_t index, bool forward, Compare above) {
  const FoldTile<float> tile(args.layout, args.dtype, kFoldTile, index);
  const int count = tile.count();
  alignas(64) uint8_t flags[kFoldTile];
  if (forward) {
    for (int i = count & ~7; i < ((count + 7) & ~7); ++i) flags[i] = 0;
  } else {
    tile.read_flags(tile.plane(args.bits, 0, 1), flags);
  }
  tile.each_run([&](int at, const FoldRun& run, int length) {
    const T* __restrict a = static_cast<const T*>(args.in) + run.offset;
    const T* __restrict b = a + run.apart;
    T* __restrict low = static_cast<T*>(args.out) + run.offset;
    T* __restrict high = low + run.apart;
    uint8_t* __restrict m = flags + at;
    if (forward) {
      for (int i = 0; i < length; ++i) m[i] = above(a[i], b[i]);
    }
    for (int i = 0; i < length; ++i) {
      T v[2] = {a[i], b[i]};
      MaxMinFold::reflect(v, m[i] != 0, a);
      low[i] = v[0];
      high[i] = v[1];
    }
  });
  if (forward && args.bits != nullptr) tile.write_flags(flags, tile.plane(args.bits, 0, 1));
}

void exchange_tiles(const FoldArgs& args, int64_t begin, int64_t end, bool forward) {
  const auto run = [&](auto element, auto above) {
    for (int64_t i = begin; i < end; ++i) exchange_tile<decltype(element)>(args, i, forward, above);
  };
  switch (args.dtype) {
    case DType::kFloat32:
      return run(0.0f, Above{});
    case DType::kFloat64:
      return run(0.0, Above{});
    case DType::kBFloat16:
      return run(uint16_t{0}, HalfAbove{0x7F80});
    case DType::kFloat16:
      return run(uint16_t{0}, HalfAbove{0x7C00});
  }
}

template <class A, class Fold>
void forward_tile(const FoldArgs& args, int64_t index) {
  constexpr int K = Fold::kComponents;
  const FoldTile<A> tile(args.layout, args.dtype, kFoldTile, index);
  const int count = tile.count();
  alignas(64) A buffer[K][kFoldTile];
  alignas(64) A result[K][kFoldTile];
  alignas(64) uint8_t flags[kFoldTile];
  for (int i = count & ~7; i < ((count + 7) & ~7); ++i) flags[i] = 0;
  const A* in[K];
  for (int k = 0; k < K; ++k) {
    in[k] = tile.load(args.in, k, buffer[k]);
    if (args.bias == nullptr) continue;
    alignas(64) A bias[kFoldTile];
    const A* of_channel = static_cast<const A*>(args.bias);
    tile.spread(bias, [&](int64_t line) { return of_channel[fold_channel(args.layout, line, k)]; });
    for (int i = 0; i < count; ++i) buffer[k][i] = in[k][i] + bias[i];
    in[k] = buffer[k];
  }
  const Parameters<A, Fold> parameters(args, tile);
  fold_lanes<A, Fold>(in, result, flags, parameters, count);
  if (args.bits != nullptr) tile.write_flags(flags, tile.plane(args.bits, 0, 1));
  for (int k = 0; k < K; ++k) {
    if (args.gain != 1) multiply(result[k], static_cast<A>(args.gain), count);
    if (args.clamp > 0) {
      const A high = static_cast<A>(args.clamp), low = -high;
      for (int i = 0; i < count; ++i) {
        const A y = result[k][i];
        flags[i] = (y > high) | (y < low);
        result[k][i] = y > high ? high : y < low ? low : y;
      }
      if (args.clamped != nullptr) tile.write_flags(flags, tile.plane(args.clamped, k, K));
    }
    tile.store(result[k], args.out, k);
  }
}

template <class A, class Fold>
void backward_tile(const FoldArgs& args, int64_t index) {
  constexpr int K = Fold::kComponents;
  const FoldTile<A> tile(args.layout, args.dtype, kFoldTile, index);
  const int count = tile.count();
  alignas(64) A buffer[K][kFoldTile];
  alignas(64) A result[K][kFoldTile];
  alignas(64) uint8_t flags[kFoldTile];
  tile.read_flags(tile.plane(args.bits, 0, 1), flags);
  const A* in[K];
  const bool diagonal = args.gain != 1 || args.clamped != nullptr;
  for (int k = 0; k < K; ++k) {
    in[k] = tile.load(args.in, k, buffer[k]);
    if (diagonal && !args.transpose && in[k] != buffer[k]) {
      load_run(in[k], buffer[k], count);
      in[k] = buffer[k];
    }
  }
  if (diagonal && !args.transpose) scale_and_mask<A, Fold>(args, tile, buffer);
  const Parameters<A, Fold> parameters(args, tile);
  reflect_lanes<A, Fold>(in, result, flags, parameters, count);
  if (diagonal && args.transpose) scale_and_mask<A, Fold>(args, tile, result);
  for (int k = 0; k < K; ++k) tile.store(result[k], args.out, k);
}

template <class A>
void rotate_tile(const FoldArgs& args, int64_t index) {
  const FoldTile<A> tile(args.layout, args.dtype, kFoldTile, index);
  alignas(64) A buffer[2][kFoldTile], result[2][kFoldTile], weight[kFoldTile];
  alignas(64) uint8_t flags[kFoldTile];
  tile.read_flags(tile.plane(args.bits, 0, 1), flags);
  const A* in[2] = {tile.load(args.in, 0, buffer[0]), tile.load(args.in, 1, buffer[1])};
  const A* of_line = static_cast<const A*>(args.weight);
  tile.spread(weight, [&](int64_t line) { return of_line[line]; });
  for (int i = 0; i < tile.count(); ++i) {
    A v[2] = {in[0][i], in[1][i]};
    rotate(v, flags[i] != 0, weight[i]);
    result[0][i] = v[0];
    result[1][i] = v[1];
  }
  for (int k = 0; k < 2; ++k) tile.store(result[k], args.out, k);
}

template <class A>
void angle_grad_tile(const FoldArgs& args, double* sums, int64_t index) {
  const FoldTile<A> tile(args.layout, args.dtype, kFoldTile, index);
  alignas(64) A g_buffer[2][kFoldTile], y_buffer[2][kFoldTile], product[kFoldTile];
  alignas(64) uint8_t flags[kFoldTile];
  tile.read_flags(tile.plane(args.bits, 0, 1), flags);
  const A* g[2] = {tile.load(args.in, 0, g_buffer[0]), tile.load(args.in, 1, g_buffer[1])};
  const A* y[2] = {tile.load(args.other, 0, y_buffer[0]), tile.load(args.other, 1, y_buffer[1])};
  for (int i = 0; i < tile.count(); ++i) {
    const A gv[2] = {g[0][i], g[1][i]}, yv[2] = {y[0][i], y[1][i]};
    product[i] = angle_derivative(gv, yv, flags[i] != 0);
  }
  tile.each_line([&](int at, int64_t line, int length) {
    if (args.layout.inner == 1) {
      for (int i = 0; i < length; ++i) sums[line + i] += product[at + i];
    } else {
      double sum = 0;
      for (int i = 0; i < length; ++i) sum += product[at + i];
      sums[line] += sum;
    }
  });
}

// Calls body(A, Fold) with a value of each.
template <class Body>
inline void with_fold(const FoldArgs& args, Body&& body) {
  const auto with_kind = [&](auto zero) { with_reflection(args.kind, [&](auto fold) { body(zero, fold); }); };
  args.dtype == DType::kFloat64 ? with_kind(0.0) : with_kind(0.0f);
}

void run_forward(const FoldArgs& args, int64_t begin, int64_t end) {
  if (turns_signs(args)) return sign_tiles(args, begin, end, true);
  if (exchanges_values(args)) return exchange_tiles(args, begin, end, true);
  with_fold(args, [&](auto zero, auto fold) {
    for (int64_t i = begin; i < end; ++i) forward_tile<decltype(zero), decltype(fold)>(args, i);
  });
}

void run_backward(const FoldArgs& args, int64_t begin, int64_t end) {
  if (turns_signs(args)) return sign_tiles(args, begin, end, false);
  if (exchanges_values(args)) return exchange_tiles(args, begin, end, false);
  with_fold(args, [&](auto zero, auto fold) {
    for (int64_t i = begin; i < end; ++i) backward_tile<decltype(zero), decltype(fold)>(args, i);
  });
}

void run_rotate(const FoldArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    args.dtype == DType::kFloat64 ? rotate_tile<double>(args, i) : rotate_tile<float>(args, i);
  }
}

void run_angle_grad(const FoldArgs& args, double* sums, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    args.dtype == DType::kFloat64 ? angle_grad_tile<double>(args, sums, i) : angle_grad_tile<float>(args, sums, i);
  }
}

template <class A>
void half_angles(const void* angle, int64_t lines, void* sine, void* cosine) {
  const A* __restrict t = static_cast<const A*>(angle);
  A* __restrict sines = static_cast<A*>(sine);
  A* __restrict cosines = static_cast<A*>(cosine);
  constexpr int kBlock = 64;
  alignas(64) double x[kBlock], quarter[kBlock];
  for (int64_t first = 0; first < lines; first += kBlock) {
    const int count = lines - first < kBlock ? static_cast<int>(lines - first) : kBlock;
    bool small = true;
    for (int i = 0; i < count; ++i) {
      x[i] = 0.5 * static_cast<double>(t[first + i]);
      quarter[i] = 0;
      small &= __builtin_fabs(x[i]) < quarters::kMost;
    }
    for (int i = 0; i < count && !small; ++i) {
      const Turned half = half_of(static_cast<double>(t[first + i]));
      x[i] = half.x;
      quarter[i] = half.quarter;
    }
    for (int i = 0; i < count; ++i) {
      double s, c;
      sine_and_cosine({x[i], quarter[i]}, s, c);
      sines[first + i] = static_cast<A>(s);
      cosines[first + i] = static_cast<A>(c);
    }
  }
}

void run_half_angles(DType accumulation, const void* angle, int64_t lines, void* sine, void* cosine) {
  (accumulation == DType::kFloat64 ? half_angles<double> : half_angles<float>)(angle, lines, sine, cosine);
}

}  // namespace

namespace cpu {

const FoldKernels PYFOLD_TIER_SYMBOL(fold_kernels) = {run_forward, run_backward, run_rotate, run_angle_grad,
                                                      run_half_angles};

}  // namespace cpu
}  // namespace pyfold

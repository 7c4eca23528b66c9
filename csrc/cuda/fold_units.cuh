#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "core/dtype.h"
#include "cuda/divisor.cuh"
#include "folds/fold.h"

// The units of a fold on a GPU: where eight of them lie, moved as whole packs where they can be. All that divides is
// made once on the host.
namespace pyfold::cuda {
namespace {

// A thread folds eight units, so that the byte of their bits is its own.
constexpr int kUnits = 8;

// A layout as a kernel reads it. Unit t lies in block t / length; there its values are step apart from those of the
// unit before, and apart from each other.
// I: int32_t where there is one group and every count fits, else int64_t.
template <class I>
struct FoldGrid {
  static constexpr bool kOneGroup = sizeof(I) == 4;

  I units, units_per_group, bytes_per_group, groups, bytes;
  I length, stride, step, apart;
  I inner, lines, line_stride, component_stride;  // channel of component k: line line_stride + k component_stride
  Divisor<I> by_bytes, by_length, by_inner, by_lines;
  bool whole = false;         // eight units are a pack, or packs, at any multiple of eight in a group
  bool row_of_lines = false;  // and have eight neighbouring lines, the first a multiple of eight

  explicit FoldGrid(const FoldLayout& layout) {
    const auto to = [](int64_t n) { return static_cast<I>(n); };
    const int64_t limit = numerators(layout), all = layout.units(), each = layout.inner;
    units = to(all), groups = to(layout.groups), inner = to(each), lines = to(layout.lines());
    units_per_group = to(layout.units_per_group()), bytes_per_group = to(layout.bytes_per_group());
    bytes = groups * bytes_per_group;
    line_stride = to(layout.components == 1 || layout.halves ? 1 : layout.components);
    component_stride = layout.halves ? lines : 1;
    if (layout.components == 1) {
      length = units, stride = 0, step = 1, apart = 0;
    } else if (layout.halves) {
      length = lines * inner, stride = 2 * length, step = 1, apart = length;
    } else if (inner == 1) {
      length = units, stride = 0, step = to(layout.components), apart = 1;
    } else {
      length = inner, stride = to(layout.components * each), step = 1, apart = inner;
    }
    if (length == units) stride = 0;  // one block
    by_bytes = Divisor<I>(bytes_per_group, limit);
    by_length = Divisor<I>(length, limit);
    by_inner = Divisor<I>(inner, limit);
    by_lines = Divisor<I>(lines, limit);
  }

  static bool fits_32_bits(const FoldLayout& layout) {
    return layout.groups == 1 && numerators(layout) * layout.components <= INT32_MAX;
  }

  // Says whether packs may be used, for these tensors; null ones do not matter.
  void look_at(const void* a, const void* b, const void* c = nullptr) {
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    whole = aligned(a) && aligned(b) && aligned(c) && (groups == 1 || units_per_group % kUnits == 0) &&
            (stride == 0 || length % kUnits == 0) && (step != 1 || apart % kUnits == 0);
    row_of_lines = inner == 1 && lines % kUnits == 0 && (groups == 1 || units_per_group % kUnits == 0);
  }

  __device__ I group_of(I byte) const { return kOneGroup || groups == 1 ? 0 : by_bytes(byte); }
  // Of a fold of K values.
  template <int K>
  __device__ I block_of(I unit) const {
    return K == 1 || stride == 0 ? 0 : by_length(unit);
  }
  // Places passed since origin, as a place of a line.
  __device__ I line_of(I passed) const { return passed - by_lines(passed) * lines; }

 private:
  // Above every number of a unit or byte that a thread may have, past the end too.
  static int64_t numerators(const FoldLayout& layout) { return layout.units() + kUnits * layout.groups + (1 << 15); }
};

// So many elements, moved in words of up to 128 bits. An ordinary store would be merged with those of single elements,
// and split.
template <class T, int kCount = kUnits>
struct alignas(16) Pack {
  static constexpr int kBytes = sizeof(T) * kCount;
  using Word = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes % 8 == 0, uint2, unsigned>>;
  static constexpr int kWords = kBytes / sizeof(Word);
  T value[kCount];

  static __device__ Pack load(const T* from) {
    Word words[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = reinterpret_cast<const Word*>(from)[w];
    Pack pack;
    memcpy(pack.value, words, sizeof words);
    return pack;
  }
  __device__ void store(T* to) const {
    Word words[kWords];
    memcpy(words, value, sizeof words);
#pragma unroll
    for (int w = 0; w < kWords; ++w) __stwb(reinterpret_cast<Word*>(to) + w, words[w]);
  }
};

// Packs of a whole warp, whose every lane has one: as many neighbouring lanes as a pack has words move the words of
// each of them in turn, so that a request fills the sectors that it touches. kRow: the lanes' packs follow one another
// in memory.
template <class Pack, bool kRow, class I>
class Neighbours {
 public:
  // offset: of the lane's pack, in elements.
  __device__ explicit Neighbours(I offset) : lane_(static_cast<int>(threadIdx.x) % kWords) {
#pragma unroll
    for (int i = 0; i < (kRow ? 1 : kWords); ++i) {
      at_[i] = kRow ? offset - lane_ * kElements
                    : __shfl_sync(kAll, offset, static_cast<int>(threadIdx.x) % 32 / kWords * kWords + i);
    }
  }

  template <class T>
  __device__ Pack load(const T* from) const {
    Word words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = *place<const Word>(from, i);
    exchange(words);
    Pack pack;
    memcpy(pack.value, words, sizeof words);
    return pack;
  }
  template <class T>
  __device__ void store(T* to, const Pack& pack) const {
    Word words[kWords];
    memcpy(words, pack.value, sizeof words);
    exchange(words);
#pragma unroll
    for (int i = 0; i < kWords; ++i) __stwb(place<Word>(to, i), words[i]);
  }

 private:
  using Word = typename Pack::Word;
  static constexpr int kWords = Pack::kWords, kElements = sizeof(Pack::value) / sizeof(*Pack::value);
  static constexpr unsigned kAll = 0xFFFFFFFFu;
  static_assert(sizeof(Word) == 16 || kWords == 1);
  static_assert((kWords & (kWords - 1)) == 0 && kWords <= 8);

  // What this lane moves of neighbour i's.
  template <class Word, class T>
  __device__ Word* place(T* data, int i) const {
    return reinterpret_cast<Word*>(data + at_[kRow ? 0 : i]) + (kRow ? i * kWords : 0) + lane_;
  }

  // Word i of lane j becomes word j of lane i.
  __device__ void exchange(Word (&words)[kWords]) const {
    if constexpr (kWords > 1) {
#pragma unroll
      for (int distance = 1; distance < kWords; distance *= 2) {
        const bool upper = (lane_ & distance) != 0;
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          if ((i & distance) != 0) continue;
          const Word low = words[i], high = words[i | distance];
          const Word other = shuffled(chosen(upper, low, high), distance);
          words[i] = chosen(upper, other, low);
          words[i | distance] = chosen(upper, high, other);
        }
      }
    }
  }
  // By value: a choice of references would put the words into memory.
  static __device__ uint4 chosen(bool first, const uint4& a, const uint4& b) {
    return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
  }
  static __device__ uint4 shuffled(const uint4& word, int distance) {
    return {__shfl_xor_sync(kAll, word.x, distance), __shfl_xor_sync(kAll, word.y, distance),
            __shfl_xor_sync(kAll, word.z, distance), __shfl_xor_sync(kAll, word.w, distance)};
  }

  int lane_;
  I at_[kRow ? 1 : kWords];
};

// Eight units from a multiple of eight in their group, of K values each.
template <class A, int K, class I>
struct Eight {
  const FoldGrid<I>& grid;
  I first;    // the first unit
  int count;  // units that there are
  I within, offset;

  // first: of these units; left: units of its group from there on.
  __device__ Eight(const FoldGrid<I>& grid, I first, I left)
      : grid(grid), first(first), count(left < kUnits ? static_cast<int>(left) : kUnits), within(first), offset(first) {
    if constexpr (K > 1) {
      const I block = grid.template block_of<K>(first);
      within = first - block * grid.length;
      offset = block * grid.stride + (grid.step == 1 ? within : K * within);
    }
  }

  // Whether every lane of the warp, each of which asks, has eight units to move as packs.
  __device__ bool together() const { return grid.whole && __all_sync(0xFFFFFFFFu, count == kUnits); }

  template <class T>
  __device__ void load(const void* data, A (&out)[K][kUnits], bool together = false) const {
    const T* from = static_cast<const T*>(data);
    if (together) {
      if (K == 1 || side_by_side()) {
        spread(Row<T>(offset).load(from), out);
      } else {
        const Neighbours<Pack<T>, false, I> neighbours(offset);
#pragma unroll
        for (int k = 0; k < K; ++k) spread(neighbours.load(from + k * grid.apart), out[k]);
      }
    } else if (grid.whole && count == kUnits) {
      if (K == 1 || side_by_side()) {
        spread(Pack<T, K * kUnits>::load(from + offset), out);
      } else {
#pragma unroll
        for (int k = 0; k < K; ++k) spread(Pack<T>::load(from + offset + k * grid.apart), out[k]);
      }
    } else {
      each(from + offset, [&](const T* one, int i) {
#pragma unroll
        for (int k = 0; k < K; ++k) out[k][i] = i < count ? static_cast<A>(widen(one[k * grid.apart])) : A{0};
      });
    }
  }

  template <class T>
  __device__ void store(void* data, const A (&value)[K][kUnits], bool together = false) const {
    T* to = static_cast<T*>(data);
    if (together) {
      if (K == 1 || side_by_side()) {
        Row<T>(offset).store(to, gathered<T>(value));
      } else {
        const Neighbours<Pack<T>, false, I> neighbours(offset);
#pragma unroll
        for (int k = 0; k < K; ++k) neighbours.store(to + k * grid.apart, gathered<T>(value[k]));
      }
    } else if (grid.whole && count == kUnits) {
      if (K == 1 || side_by_side()) {
        gathered<T>(value).store(to + offset);
      } else {
#pragma unroll
        for (int k = 0; k < K; ++k) gathered<T>(value[k]).store(to + offset + k * grid.apart);
      }
    } else {
      each(to + offset, [&](T* one, int i) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (i < count) narrow(value[k][i], one[k * grid.apart]);
        }
      });
    }
  }

 private:
  template <class T>
  using Row = Neighbours<Pack<T, K * kUnits>, true, I>;

  // The values of a unit are neighbours in memory.
  __device__ bool side_by_side() const { return K > 1 && grid.step != 1; }

  template <class T>
  static __device__ void spread(const Pack<T, K * kUnits>& pack, A (&out)[K][kUnits]) {
#pragma unroll
    for (int i = 0; i < K * kUnits; ++i) out[i % K][i / K] = static_cast<A>(widen(pack.value[i]));
  }
  template <class T>
  static __device__ void spread(const Pack<T>& pack, A (&out)[kUnits]) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) out[i] = static_cast<A>(widen(pack.value[i]));
  }
  template <class T>
  static __device__ Pack<T, K * kUnits> gathered(const A (&value)[K][kUnits]) {
    Pack<T, K * kUnits> pack;
#pragma unroll
    for (int i = 0; i < K * kUnits; ++i) narrow(value[i % K][i / K], pack.value[i]);
    return pack;
  }
  template <class T>
  static __device__ Pack<T> gathered(const A (&value)[kUnits]) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) narrow(value[i], pack.value[i]);
    return pack;
  }

  // body(memory of unit i, i), one after another into the next block.
  template <class P, class Body>
  __device__ void each(P at, Body&& body) const {
    I here = within;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      body(at, i);
      at += grid.step;
      if (K > 1 && ++here == grid.length && grid.stride != 0) {
        here = 0;
        at += grid.stride - grid.length * grid.step;
      }
    }
  }
};

// The units of a thread, and the bytes of their bits. One past the last byte has none, and takes part in what a warp
// does together.
template <class A, int K, class I>
struct Units {
  const FoldGrid<I>& grid;
  bool active;
  I thread, group, start;
  Eight<A, K, I> eight;

  __device__ Units(const FoldGrid<I>& grid, I number)
      : grid(grid),
        active(number < grid.bytes),
        thread(active ? number : 0),
        group(grid.group_of(thread)),
        start((thread - group * grid.bytes_per_group) * kUnits),
        eight(grid, group * grid.units_per_group + start, active ? grid.units_per_group - start : 0) {}

  __device__ int count() const { return eight.count; }
  // A bit for each unit that there is.
  __device__ unsigned there() const { return (1u << count()) - 1; }

  __device__ uint8_t* bits(uint8_t* of) const { return of + thread; }
  __device__ uint8_t* clamped(uint8_t* of, int k) const {
    return of + (group * K + k) * grid.bytes_per_group + start / kUnits;
  }

  // values[stride line + offset] of each unit, its line counted from origin: read once where all eight share a line, as
  // packs where they lie side by side.
  __device__ void spread(const A* values, I stride, I offset, I origin, A (&out)[kUnits]) const {
    const I passed = grid.by_inner(eight.first);
    I within = eight.first - passed * grid.inner, line = grid.line_of(passed - origin);
    const A* at = values + stride * line + offset;
    if (grid.inner - within >= kUnits) {
      const A shared = *at;
#pragma unroll
      for (int i = 0; i < kUnits; ++i) out[i] = shared;
    } else if (grid.row_of_lines && stride == 1 && count() == kUnits && reinterpret_cast<uintptr_t>(at) % 16 == 0) {
      const Pack<A> pack = Pack<A>::load(at);
#pragma unroll
      for (int i = 0; i < kUnits; ++i) out[i] = pack.value[i];
    } else {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        out[i] = i < count() ? values[stride * line + offset] : A{0};
        if (++within == grid.inner) {
          within = 0;
          line = line + 1 == grid.lines ? 0 : line + 1;
        }
      }
    }
  }
};

}  // namespace
}  // namespace pyfold::cuda

#include "cpu/launch.h"

#include <pthread.h>

#include <algorithm>

namespace pyfold::cpu {
namespace {

// Units, or values, that a thread should get at least: waking it costs a few microseconds.
constexpr int64_t kUnitGrain = 32768;

size_t bytes_of(const FoldLayout& layout, DType dtype) {
  return static_cast<size_t>(layout.outer * layout.channels * layout.inner * size_of(dtype));
}

template <class A>
void add_chunks(const std::vector<double>& sums, int64_t lines, A* result) {
  for (int64_t line = 0; line < lines; ++line) {
    double sum = 0;
    for (size_t at = line; at < sums.size(); at += lines) sum += sums[at];
    result[line] = static_cast<A>(sum);
  }
}

}  // namespace

// A forked process has none of the threads that its parent's OpenMP waits for: it would wait for ever.
ParallelFor*& parallel_for() {
  static ParallelFor* shared = nullptr;
  [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, [] { shared = nullptr; });
  return shared;
}

void launch_fold(FoldArgs& args, FoldKernel kernel) {
  std::vector<double> half_angles;  // sines and cosines; float32 takes half of it
  if (args.angle != nullptr) {
    const int64_t lines = args.layout.lines();
    const DType type = args.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    half_angles.resize(2 * lines);
    args.half_sine = half_angles.data();
    args.half_cosine = half_angles.data() + lines;
    fold_kernels().half_angles(type, args.angle, lines, half_angles.data(), half_angles.data() + lines);
  }
  prefer_huge_pages(args.out, bytes_of(args.layout, args.dtype));
  parallel(fold_tiles(args.layout), kUnitGrain / kFoldTile,
           [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// Chunks of tiles have sums of their own, added in order: the same bits for any number of threads.
void launch_angle_grad(const FoldArgs& args, void* result) {
  const int64_t tiles = fold_tiles(args.layout), lines = args.layout.lines();
  const int64_t chunks = (tiles + kFoldSumTiles - 1) / kFoldSumTiles;
  std::vector<double> sums(chunks * lines);
  const auto kernel = fold_kernels().angle_grad;
  parallel(chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kFoldSumTiles;
      kernel(args, sums.data() + chunk * lines, first, std::min(first + kFoldSumTiles, tiles));
    }
  });
  args.dtype == DType::kFloat64 ? add_chunks(sums, lines, static_cast<double*>(result))
                                : add_chunks(sums, lines, static_cast<float*>(result));
}

void launch_sequence(const SequenceArgs& args) {
  prefer_huge_pages(args.out, bytes_of(args.out_layout, args.dtype));
  const int units = sequence_tile(args);
  const int64_t grain = kUnitGrain / (static_cast<int64_t>(units) * sequence_rows(args));
  const auto kernel = sequence_kernels().run;
  parallel(fold_tiles(args.in_layout, units), std::max<int64_t>(1, grain),
           [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace pyfold::cpu

#pragma once

#include <span>
#include <vector>

#include "cpu/diffusion.h"
#include "cpu/folds.h"
#include "cpu/huge_pages.h"
#include "cpu/sequence.h"

// Runs kernels on torch's threads, whoever calls.
namespace pyfold::cpu {

// torch's parallel_for, which the library of ops leaves here when it is loaded; without it one thread does all.
using ParallelFor = void(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                         void* context);
PYFOLD_EXPORT ParallelFor*& parallel_for();

// body(begin, end) over [0, count), at least grain at once.
template <class Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
  if (count == 0) return;
  if (count <= grain || parallel_for() == nullptr) return body(0, count);
  parallel_for()(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

template <auto kernel, class Args>
void launch_map(const Args& args, std::span<const View* const> results) {
  prefer_huge_pages(args.geometry, results);
  const auto run = diffusion_kernels().*kernel;
  parallel(task_count(args.geometry), task_grain(args.geometry, draws_noise(args)),
           [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

// A sum for each sample, its tiles in order.
template <auto kernel>
void launch_sums(const NoisingArgs& args, double factor, bool wide, void* result) {
  std::vector<double> sums(task_count(args.geometry));
  const auto run = diffusion_kernels().*kernel;
  parallel(task_count(args.geometry), task_grain(args.geometry, draws_noise(args)),
           [&](int64_t begin, int64_t end) { run(args, sums.data(), begin, end); });
  sum_rows(args.geometry, sums.data(), factor, wide, result);
}

PYFOLD_EXPORT void launch_fold(FoldArgs& args, FoldKernel kernel);
PYFOLD_EXPORT void launch_angle_grad(const FoldArgs& args, void* result);
PYFOLD_EXPORT void launch_sequence(const SequenceArgs& args);

}  // namespace pyfold::cpu

// Runs one kernel over a fixed number of elements, without torch: for counting instructions per element.
//   pyfold_driver KERNEL TIER ELEMENTS     e.g. valgrind --tool=callgrind pyfold_driver affine_step avx2 65536
// ELEMENTS 0 runs all but the kernel, so that a difference of two counts is the kernel's own.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/diffusion.h"
#include "cpu/folds.h"

using namespace pyfold;

namespace {

constexpr int64_t kElements = 65536;

struct Buffers {
  std::vector<float> x, model, out;
  std::vector<uint8_t> bits;
  Buffers() : x(kElements), model(kElements), out(kElements), bits(kElements / 8) {
    for (int64_t i = 0; i < kElements; ++i) {
      x[i] = static_cast<float>(i % 251) * 0.01f - 1.0f;
      model[i] = static_cast<float>(i % 83) * 0.02f - 0.8f;
    }
  }
};

void view(View& v, std::vector<float>& data, int64_t elements) {
  v.data = data.data();
  v.row_stride = elements;
  v.stride[0] = 1;
}

void run_step(Buffers& buffers, int64_t elements, bool noisy) {
  double row[kStepColumns] = {};
  row[kStep_a] = 0.9;
  row[kStep_g1] = 1.0;
  row[kStep_p] = 1.1;
  row[kStep_q] = -0.3;
  row[kStep_clip_min] = -1.0;
  row[kStep_clip_max] = 1.0;
  row[kStep_c_x0] = 0.1;
  row[kStep_d1] = noisy ? 0.2 : 0.0;
  const int64_t seed = 42;
  AffineStepArgs args;
  args.geometry = {1, elements, 1, {elements}};
  args.table.data = row;
  args.table.rows = 1;
  args.noise.seeds = &seed;
  args.noise.window.stride[0] = 1;
  view(args.x, buffers.x, elements);
  view(args.models[0], buffers.model, elements);
  view(args.out, buffers.out, elements);
  cpu::diffusion_kernels().affine_step(args, 0, cpu::task_count(args.geometry));
}

void run_randn(Buffers& buffers, int64_t elements) {
  const int64_t seed = 42;
  RandnArgs args;
  args.geometry = {1, elements, 1, {elements}};
  args.noise.seeds = &seed;
  args.noise.window.stride[0] = 1;
  view(args.out, buffers.out, elements);
  cpu::diffusion_kernels().randn(args, 0, cpu::task_count(args.geometry));
}

void run_fold(Buffers& buffers, int64_t elements, FoldKind kind, bool backward) {
  FoldArgs args;
  args.kind = kind;
  args.layout = {1, 16, elements / 16, false, kind == FoldKind::kAbs ? 1 : 2, 1};
  args.in = buffers.x.data();
  args.out = buffers.out.data();
  args.bits = buffers.bits.data();
  std::vector<float> half(16, 0.6f);
  args.half_sine = half.data();
  args.half_cosine = half.data();
  const auto& kernels = cpu::fold_kernels();
  (backward ? kernels.backward : kernels.forward)(args, 0, cpu::fold_tiles(args.layout));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: pyfold_driver KERNEL TIER ELEMENTS\n");
    return 2;
  }
  const char* name = argv[1];
  cpu::set_tier(argv[2]);
  const int64_t elements = std::atoll(argv[3]);
  if (elements < 0 || elements > kElements || elements % 16 != 0) {
    std::fprintf(stderr, "ELEMENTS must be a multiple of 16 up to %lld\n", static_cast<long long>(kElements));
    return 2;
  }
  Buffers buffers;
  if (elements == 0) return 0;
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("randn")) {
    run_randn(buffers, elements);
  } else if (is("affine_step")) {
    run_step(buffers, elements, false);
  } else if (is("affine_step_noise")) {
    run_step(buffers, elements, true);
  } else if (is("fold_abs") || is("fold_abs_backward")) {
    run_fold(buffers, elements, FoldKind::kAbs, is("fold_abs_backward"));
  } else if (is("fold_maxmin") || is("fold_maxmin_backward")) {
    run_fold(buffers, elements, FoldKind::kMaxMin, is("fold_maxmin_backward"));
  } else if (is("fold_householder") || is("fold_householder_backward")) {
    run_fold(buffers, elements, FoldKind::kHouseholder, is("fold_householder_backward"));
  } else {
    std::fprintf(stderr, "no kernel is named %s\n", name);
    return 2;
  }
  return 0;
}

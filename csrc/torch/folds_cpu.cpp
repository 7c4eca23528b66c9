#include "cpu/huge_pages.h"
#include "cpu/launch.h"
#include "torch/folds.h"

namespace pyfold::ops {
namespace {

// Units a thread should get at least: waking it costs a few microseconds.
constexpr int64_t kUnitGrain = 32768;

template <class Body>
void parallel_tiles(const FoldLayout& layout, const Body& body) {
  const int64_t tiles = cpu::fold_tiles(layout);
  constexpr int64_t grain = kUnitGrain / cpu::kFoldTile;
  if (tiles <= grain) return body(0, tiles);
  torch::stable::parallel_for(0, tiles, grain, body);
}

// sin and cos of the half angles of the lines of one call.
struct HalfAngles {
  std::vector<double> memory;  // float32 takes half of it

  explicit HalfAngles(FoldArgs& args) {
    if (args.angle == nullptr) return;
    const int64_t lines = args.layout.lines();
    const DType type = args.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    memory.resize(2 * lines);
    args.half_sine = memory.data();
    args.half_cosine = memory.data() + lines;
    cpu::fold_kernels().half_angles(type, args.angle, lines, memory.data(), memory.data() + lines);
  }
};

void launch(FoldArgs& args, cpu::FoldKernel kernel) {
  const HalfAngles angles(args);
  cpu::prefer_huge_pages(args.out, bytes_of(args.layout, args.dtype));
  parallel_tiles(args.layout, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

[[maybe_unused]] const bool known = (cpu::launchers().fold = launch, true);

std::tuple<Tensor, Tensor, Tensor> fold_cpu(const Tensor& x, const std::optional<Tensor>& bias,
                                            const std::optional<Tensor>& angle, const std::string& kind, int64_t dim,
                                            const std::string& pairing, double gain, double clamp, int64_t groups,
                                            bool remember) {
  return fold_forward(x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember,
                      [](FoldArgs& args, const Tensor&) { launch(args, cpu::fold_kernels().forward); });
}

Tensor fold_backward_cpu(const Tensor& grad, const Tensor& bits, const Tensor& clamped,
                         const std::optional<Tensor>& angle, const std::string& kind, int64_t dim,
                         const std::string& pairing, double gain, int64_t groups, bool transpose) {
  return fold_backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose,
                       [](FoldArgs& args, const Tensor&) { launch(args, cpu::fold_kernels().backward); });
}

Tensor fold_rotate_cpu(const Tensor& value, const Tensor& bits, const Tensor& weight, int64_t dim,
                       const std::string& pairing, int64_t groups) {
  return fold_rotate(value, bits, weight, dim, pairing, groups,
                     [](FoldArgs& args, const Tensor&) { launch(args, cpu::fold_kernels().rotate); });
}

// Chunks of tiles have sums of their own, added in order: the same bits for any number of threads.
Tensor fold_angle_grad_cpu(const Tensor& grad, const Tensor& output, const Tensor& bits, int64_t dim,
                           const std::string& pairing, int64_t groups) {
  const FoldArgs args = fold_angle_grad_args(grad, output, bits, dim, pairing, groups);
  const int64_t tiles = cpu::fold_tiles(args.layout);
  const int64_t chunks = (tiles + cpu::kFoldSumTiles - 1) / cpu::kFoldSumTiles;
  const int64_t lines = args.layout.lines();
  std::vector<double> sums(chunks * lines);
  const auto& kernels = cpu::fold_kernels();
  torch::stable::parallel_for(0, chunks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * cpu::kFoldSumTiles;
      kernels.angle_grad(args, sums.data() + chunk * lines, first, std::min(first + cpu::kFoldSumTiles, tiles));
    }
  });
  Tensor result = torch::stable::new_empty(grad, {lines}, accumulation_type(grad));
  for (int64_t line = 0; line < lines; ++line) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * lines + line];
    if (accumulation_type(grad) == ScalarType::Double) {
      static_cast<double*>(result.mutable_data_ptr())[line] = sum;
    } else {
      static_cast<float*>(result.mutable_data_ptr())[line] = static_cast<float>(sum);
    }
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CPU, m) {
  m.impl("fold", TORCH_BOX(&fold_cpu));
  m.impl("fold_backward", TORCH_BOX(&fold_backward_cpu));
  m.impl("fold_rotate", TORCH_BOX(&fold_rotate_cpu));
  m.impl("fold_angle_grad", TORCH_BOX(&fold_angle_grad_cpu));
}

}  // namespace pyfold::ops

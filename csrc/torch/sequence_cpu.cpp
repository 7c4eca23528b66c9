#include "cpu/huge_pages.h"
#include "cpu/launch.h"
#include "torch/sequence.h"

namespace pyfold::ops {
namespace {

// Values that a thread should get at least: waking it costs a few microseconds.
constexpr int64_t kValueGrain = 32768;

void launch(const SequenceArgs& args) {
  cpu::prefer_huge_pages(args.out, bytes_of(args.out_layout, args.dtype));
  const int units = cpu::sequence_tile(args);
  const int64_t tiles = cpu::fold_tiles(args.in_layout, units);
  const int64_t values = static_cast<int64_t>(units) * sequence_rows(args);
  const int64_t grain = std::max<int64_t>(1, kValueGrain / values);
  const auto kernel = cpu::sequence_kernels().run;
  if (tiles <= grain) return kernel(args, 0, tiles);
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

[[maybe_unused]] const bool known = (cpu::launchers().sequence = launch, true);

void fold_sequence_cpu(const Tensor& x, const std::optional<Tensor>& bias, const std::optional<Tensor>& parameters,
                       const std::vector<int64_t>& program, const std::vector<double>& constants, int64_t rows,
                       int64_t dim, const std::string& pairing, int64_t groups, const Tensor& out,
                       const std::optional<Tensor>& bits) {
  launch(sequence_args(x, bias, parameters, program, constants, rows, dim, pairing, groups, out, bits));
}

void fold_sequence_apply_cpu(const Tensor& value, const Tensor& bits, const std::optional<Tensor>& parameters,
                             const std::vector<int64_t>& program, const std::vector<double>& constants, int64_t rows,
                             int64_t dim, const std::string& pairing, int64_t groups, const std::string& mode,
                             const Tensor& out) {
  launch(sequence_apply_args(value, bits, parameters, program, constants, rows, dim, pairing, groups, mode, out));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CPU, m) {
  m.impl("fold_sequence", TORCH_BOX(&fold_sequence_cpu));
  m.impl("fold_sequence_apply", TORCH_BOX(&fold_sequence_apply_cpu));
}

}  // namespace pyfold::ops

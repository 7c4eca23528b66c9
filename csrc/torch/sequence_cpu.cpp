#include "cpu/sequence.h"

#include "cpu/huge_pages.h"
#include "torch/sequence.h"

namespace pyfold::ops {
namespace {

void launch(const SequenceArgs& args) {
  cpu::prefer_huge_pages(args.out, bytes_of(args.out_layout, args.dtype));
  const int64_t tiles = cpu::fold_tiles(args.in_layout, cpu::sequence_tile(args));
  const int64_t grain = cpu::sequence_grain(args);
  const auto kernel = cpu::sequence_kernels().run;
  if (tiles <= grain) return kernel(args, 0, tiles);
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

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

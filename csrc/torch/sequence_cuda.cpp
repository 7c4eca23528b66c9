#include "cuda/sequence.h"

#include "torch/cuda_stream.h"
#include "torch/sequence.h"

namespace pyfold::ops {
namespace {

void launch(const SequenceArgs& args, const Tensor& tensor) {
  const CudaContext context(tensor);
  check_launch(cuda::fold_sequence(args, context.stream()));
}

void fold_sequence_cuda(const Tensor& x, const std::optional<Tensor>& bias, const std::optional<Tensor>& parameters,
                        const std::vector<int64_t>& program, const std::vector<double>& constants, int64_t rows,
                        int64_t dim, const std::string& pairing, int64_t groups, const Tensor& out,
                        const std::optional<Tensor>& bits) {
  launch(sequence_args(x, bias, parameters, program, constants, rows, dim, pairing, groups, out, bits), x);
}

void fold_sequence_apply_cuda(const Tensor& value, const Tensor& bits, const std::optional<Tensor>& parameters,
                              const std::vector<int64_t>& program, const std::vector<double>& constants, int64_t rows,
                              int64_t dim, const std::string& pairing, int64_t groups, const std::string& mode,
                              const Tensor& out) {
  launch(sequence_apply_args(value, bits, parameters, program, constants, rows, dim, pairing, groups, mode, out),
         value);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CUDA, m) {
  m.impl("fold_sequence", TORCH_BOX(&fold_sequence_cuda));
  m.impl("fold_sequence_apply", TORCH_BOX(&fold_sequence_apply_cuda));
}

}  // namespace pyfold::ops

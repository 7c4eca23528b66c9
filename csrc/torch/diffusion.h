#pragma once

#include "diffusion/affine_step.h"
#include "diffusion/noising.h"
#include "diffusion/randn.h"
#include "torch/tensors.h"

// The arguments of the diffusion ops, from tensors: the same for every device. csrc/torch/schemas.cpp has the schemas.
namespace pyfold::ops {

using Ints = std::vector<int64_t>;

// float64 for float64 states, float32 for all others.
inline ScalarType accumulation_type(const Tensor& state) {
  return state.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline NoiseSource noise_source(const Operands& operands, const Geometry& geometry, const Tensor& seeds,
                                int64_t stream) {
  operands.check_device(seeds, "seeds");
  STD_TORCH_CHECK(seeds.scalar_type() == ScalarType::Long && seeds.is_contiguous() && seeds.numel() == geometry.rows,
                  "pyfold: seeds must be contiguous int64, one for each sample");
  NoiseSource noise;
  noise.seeds = static_cast<const int64_t*>(seeds.const_data_ptr());
  noise.stream = static_cast<uint32_t>(stream);
  return noise;
}

inline Table coefficient_table(const Operands& operands, const Geometry& geometry, const Tensor& table,
                               const std::optional<Tensor>& index, int64_t columns) {
  operands.check_device(table, "table");
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Double && table.is_contiguous() && table.dim() == 2 &&
                      table.size(1) == columns,
                  "pyfold: table must be contiguous float64 with ", columns, " columns");
  Table result;
  result.data = static_cast<const double*>(table.const_data_ptr());
  result.rows = table.size(0);
  if (index.has_value()) {
    operands.check_device(*index, "index");
    STD_TORCH_CHECK(index->scalar_type() == ScalarType::Long && index->is_contiguous() &&
                        (index->numel() == 1 || index->numel() == geometry.rows),
                    "pyfold: index must be contiguous int64, one entry or one for each sample");
    result.index = static_cast<const int64_t*>(index->const_data_ptr());
    result.index_stride = index->numel() == 1 ? 0 : 1;
  }
  return result;
}

inline RandnArgs randn_args(const Tensor& seeds, int64_t stream, int64_t step, const Ints& offset,
                            const Ints& global_shape, const Tensor& out) {
  RandnArgs args;
  Operands operands(out, args.geometry);
  operands.add(args.out, out, "out");
  args.noise = noise_source(operands, args.geometry, seeds, stream);
  operands.window(args.noise.window, offset, global_shape);
  operands.finish();
  args.noise.step = static_cast<uint32_t>(step);
  return args;
}

// What every noising op shares; the operands of each are added by its own function.
struct NoisingCall {
  NoisingArgs args;
  Operands operands;

  NoisingCall(const Tensor& x0, const Tensor& table, const std::optional<Tensor>& index, const Tensor& seeds,
              int64_t stream, int64_t step)
      : operands(x0, args.geometry) {
    operands.add(args.x0, x0, "x0");
    args.table = coefficient_table(operands, args.geometry, table, index, kNoisingColumns);
    args.noise = noise_source(operands, args.geometry, seeds, stream);
    args.noise.step = static_cast<uint32_t>(step);
  }
  NoisingCall(const NoisingCall&) = delete;

  void scale(const Tensor& scale, const Tensor& x0) {
    operands.check_device(scale, "scale");
    STD_TORCH_CHECK(
        scale.scalar_type() == accumulation_type(x0) && scale.is_contiguous() && scale.numel() == args.geometry.rows,
        "pyfold: scale must hold one accumulation value for each sample");
    args.row_scale = scale.const_data_ptr();
  }

  const NoisingArgs& finish(const Ints& offset, const Ints& global_shape) {
    operands.window(args.noise.window, offset, global_shape);
    operands.finish();
    return args;
  }
};

inline AffineStepArgs affine_step_args(const Tensor& x, const std::vector<Tensor>& models,
                                       const std::optional<Tensor>& base, const std::vector<Tensor>& history,
                                       const Tensor& table, const std::optional<Tensor>& index,
                                       const std::optional<Tensor>& seeds, int64_t stream, const Ints& offset,
                                       const Ints& global_shape, const Tensor& out,
                                       const std::optional<Tensor>& history_out,
                                       const std::optional<Tensor>& next_input, const std::optional<Tensor>& x0_out) {
  STD_TORCH_CHECK(models.size() <= kMaxModels, "pyfold: at most ", kMaxModels, " models");
  STD_TORCH_CHECK(history.size() <= kMaxHistory, "pyfold: at most ", kMaxHistory, " history tensors");
  AffineStepArgs args;
  Operands operands(x, args.geometry);
  operands.add(args.x, x, "x");
  for (size_t j = 0; j < models.size(); ++j) operands.add(args.models[j], models[j], "models");
  operands.add(args.base, base, "base");
  for (size_t i = 0; i < history.size(); ++i) operands.add(args.history[i], history[i], "history");
  operands.add(args.out, out, "out");
  operands.add(args.history_out, history_out, "history_out");
  operands.add(args.next_input, next_input, "next_input");
  operands.add(args.x0_out, x0_out, "x0_out");
  args.table = coefficient_table(operands, args.geometry, table, index, kStepColumns);
  if (seeds.has_value()) args.noise = noise_source(operands, args.geometry, *seeds, stream);
  operands.window(args.noise.window, offset, global_shape);
  operands.finish();
  return args;
}

}  // namespace pyfold::ops

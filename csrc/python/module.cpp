#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "build_info.h"
#include "core/philox.h"
#include "cpu/diffusion.h"
#include "cpu/folds.h"
#include "folds/program.h"
#include "ops/op.h"
#include "python/torch.h"

// pyfold._C: what is no tensor op. It holds no torch symbol, so it loads with NumPy alone.
namespace py = pybind11;
using namespace pyfold;
using namespace py::literals;

namespace {

std::vector<std::string> tiers(bool (*has)(cpu::Tier)) {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::kTierCount; ++i) {
    const auto tier = static_cast<cpu::Tier>(i);
    if (has(tier)) names.push_back(cpu::tier_name(tier));
  }
  return names;
}

py::dict build_info() {
  return py::dict("version"_a = PYFOLD_VERSION, "compiler"_a = PYFOLD_COMPILER, "kernel_flags"_a = PYFOLD_KERNEL_FLAGS,
                  "cuda_built"_a = static_cast<bool>(PYFOLD_CUDA_BUILT), "cuda_reason"_a = PYFOLD_CUDA_REASON,
                  "cuda_code"_a = PYFOLD_CUDA_CODE, "nvcc"_a = PYFOLD_NVCC_VERSION);
}

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

Words philox(const Words& counter, const Words& key) {
  if (counter.ndim() != 2 || counter.shape(1) != 4) throw py::value_error("counter must have shape (n, 4)");
  if (key.ndim() != 1 || key.shape(0) != 2) throw py::value_error("key must have shape (2,)");
  Words result({counter.shape(0), counter.shape(1)});
  for (py::ssize_t i = 0; i < counter.shape(0); ++i) {
    uint32_t words[4];
    std::copy_n(counter.data(i), 4, words);
    philox4x32<ScalarLanes>(words, key.at(0), key.at(1));
    std::copy_n(words, 4, result.mutable_data(i));
  }
  return result;
}

py::array_t<float> normals(int64_t seed, uint32_t stream, uint32_t step, int64_t count, int64_t first) {
  if (count < 0 || first < 0) throw py::value_error("count and first must not be negative");
  py::array_t<float> result(count);
  RandnArgs args;
  args.geometry = {1, count, 1, {count}};
  args.noise.seeds = &seed;
  args.noise.stream = stream;
  args.noise.window.base = first;
  args.noise.window.stride[0] = 1;
  args.noise.step = step;
  args.out.data = result.mutable_data();
  args.out.stride[0] = 1;
  cpu::diffusion_kernels().randn(args, 0, cpu::task_count(args.geometry));
  return result;
}

py::tuple half_angles(const py::array& angle) {
  const bool wide = py::isinstance<py::array_t<double>>(angle);
  if ((!wide && !py::isinstance<py::array_t<float>>(angle)) || angle.ndim() != 1) {
    throw py::value_error("angle must be float32 or float64 of shape (n,)");
  }
  const py::array given = py::array::ensure(angle, py::array::c_style);
  py::array sine(given.dtype(), given.shape(0)), cosine(given.dtype(), given.shape(0));
  cpu::fold_kernels().half_angles(wide ? DType::kFloat64 : DType::kFloat32, given.data(), given.shape(0),
                                  sine.mutable_data(), cosine.mutable_data());
  return py::make_tuple(sine, cosine);
}

// Codes and planes of the instructions of a program of folds: name -> (code, planes of a unit of one value).
py::dict fold_ops() {
  py::dict ops;
#define PYFOLD_FOLD_OP(name, ...)                                                 \
  {                                                                               \
    SequenceReach reach;                                                          \
    sequence_reach(FoldOp::k##name, 1, false, reach);                             \
    ops[#name] = py::make_tuple(static_cast<int>(FoldOp::k##name), reach.planes); \
  }
  PYFOLD_FOLD_OPS(PYFOLD_FOLD_OP)
#undef PYFOLD_FOLD_OP
  return ops;
}

// Name, schema, operands (name, kind, flags) and results of every op.
py::list described() {
  py::list ops;
  for (const ops::Op& op : ops::all()) {
    py::list operands;
    for (const ops::Operand& operand : op.operands) {
      operands.append(py::make_tuple(operand.name, static_cast<int>(operand.kind), operand.flags));
    }
    ops.append(py::make_tuple(op.name, op.schema(), operands, op.results));
  }
  return ops;
}

}  // namespace

#define PYFOLD_NAME(name) #name,

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, the choice of CPU kernels, noise on NumPy arrays, and small calls; no torch symbol in here.";
  m.def("build_info", &build_info, "How this build was made.");
  m.def("cpu_tier", [] { return cpu::tier_name(cpu::current_tier()); }, "The CPU instruction set in use.");
  m.def(
      "set_cpu_tier", [](const std::string& name) { cpu::set_tier(name.c_str()); }, py::arg("name"),
      "Chooses the CPU instruction set for all calls that follow; ValueError if it cannot run here.");
  m.def("cpu_tiers_built", [] { return tiers(cpu::tier_built); });
  m.def("cpu_tiers_supported", [] { return tiers(cpu::tier_supported); });
  m.def("philox4x32", &philox, py::arg("counter"), py::arg("key"),
        "Philox4x32-10 of counters uint32 [n, 4] under one key uint32 [2].");
  m.def("normals", &normals, py::arg("seed"), py::arg("stream"), py::arg("step"), py::arg("count"),
        py::arg("first") = 0, "Elements [first, first + count) of one sample's noise, float32.");
  m.def("half_angles", &half_angles, py::arg("angle"), "Sines and cosines of half angles, as the kernels make them.");
  m.def(
      "read_counts",
      [] {
        const ops::ReadCounts& counts = ops::read_counts();
        return py::make_tuple(counts.options.load(), counts.tensors.load());
      },
      "How often this process read (options, tensors) of calls.");
  add_calls(m.ptr());
  m.attr("OPS") = described();
  m.attr("NOISING_COLUMNS") = std::vector<std::string>{PYFOLD_NOISING_COLUMNS(PYFOLD_NAME)};
  m.attr("AFFINE_STEP_COLUMNS") = std::vector<std::string>{PYFOLD_AFFINE_STEP_COLUMNS(PYFOLD_NAME)};
  m.attr("FOLD_OPS") = fold_ops();
  m.attr("FOLD_LIMITS") =
      py::dict("instructions"_a = kMaxInstructions, "constants"_a = kMaxConstants, "width"_a = kMaxRows,
               "matrix_width"_a = kMaxMatrixRows, "first_parameter"_a = kParameters);
  m.attr("TILE_LANES") = static_cast<int>(cpu::kTileLanes);
}

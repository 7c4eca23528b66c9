#include "cpu/launch.h"
#include "folds/layout.h"
#include "folds/program.h"
#include "folds/reflections.h"
#include "ops/parser.h"

// The folds of one reflection each, and the programs of folds (csrc/folds/sequence.h).
namespace pyfold::ops {
namespace {

// How the units of a call lie: dim, pairing, groups. Where every value folds for itself any dim does.
struct Units {
  int64_t dim = 0, groups = 1;
  bool halves = false;

  void read_from(Parser& read) {
    read.integer("dim", dim);
    constexpr std::string_view kPairings[] = {"adjacent", "halves"};
    read.choice("pairing", kPairings, halves);
    read.integer("groups", groups, 1);
  }
  void lay_out(Parser& read, const char* name, const TensorRef& x, int components, bool any_dim,
               FoldLayout& layout) const {
    if (!read.ok()) return;
    const int64_t last = std::max(x.ndim, 1) - 1;
    const bool inside = dim >= 0 && dim <= last;
    if (!inside && !any_dim) return read.fail(Wrong::kRange, "dim");
    if (!dense(x)) return read.fail(Wrong::kLayout, name);
    layout.components = components;
    layout.halves = halves;
    layout.groups = groups;
    int64_t order[kMostDims];
    const char* wrong = fold_layout(layout, x.ndim, x.sizes, x.strides, inside ? dim : 0, order);
    if (wrong != nullptr) read.fail(Wrong::kUnits, name, -1, wrong);
  }
};

// So many values in order, of an operand that may be absent.
struct Values {
  TensorRef tensor;
  bool given;
  const char* name;

  Values(Parser& read, const char* name, Kind kind, unsigned flags = kOptional)
      : given(read.tensor(name, kind, flags, tensor)), name(name) {}
  void* of(Parser& read, int64_t count) const {
    if (!read.ok() || !given) return nullptr;
    if (tensor.numel() != count) return read.fail(Wrong::kShape, name), nullptr;
    return tensor.data;
  }
  int64_t count() const { return given ? tensor.numel() : 0; }
};

int64_t bit_bytes(const FoldLayout& layout) { return layout.bytes_per_group(); }

void result_bits(Parser& read, const char* shape, const FoldLayout& layout, int64_t planes, uint8_t*& bits) {
  void** slot = planes > 0 ? reinterpret_cast<void**>(&bits) : nullptr;
  read.result(shape, Element::kUInt8, slot, {layout.groups, planes * bit_bytes(layout)});
}

// --- one reflection

struct FoldCall : FoldArgs {
  Units units;
  bool save_bits = false;
};

struct Reflection {
  FoldCall& args;
  TensorRef in{};

  explicit Reflection(Call& call) : args(call.begin<FoldCall>()) {}

  void read_kind(Parser& read) { read.choice("kind", kReflectionNames, args.kind); }
  // The kind and the units are read already.
  void lay_out(Parser& read, Call& call, const char* name, bool any_dim = true) {
    const int components = reflection_components(args.kind);
    args.units.lay_out(read, name, in, components, any_dim && components == 1, args.layout);
    if (!read.ok()) return;
    args.in = in.data;
    args.dtype = in.dtype();
    call.work = in.numel();
  }
  void angle(Parser& read, const Values& angle) {
    args.angle = angle.of(read, args.layout.lines());
    if (read.ok() && reflection_parameters(args.kind) > 0 && !angle.given) read.fail(Wrong::kType, "angle");
  }
  void bits(Parser& read, const Values& bits, const Values* clamped = nullptr) {
    const int64_t bytes = args.layout.groups * bit_bytes(args.layout);
    args.bits = static_cast<uint8_t*>(bits.of(read, bytes));
    if (clamped != nullptr && clamped->count() > 0) {
      args.clamped = static_cast<uint8_t*>(clamped->of(read, args.layout.components * bytes));
    }
  }
};

void fold(Parser& read, Call& call) {
  Reflection fold(call);
  FoldCall& args = fold.args;
  read.tensor("x", Kind::kState, 0, fold.in);
  const Values bias(read, "bias", Kind::kAccumulation), angle(read, "angle", Kind::kAccumulation);
  args.units.read_from(read);
  fold.read_kind(read);
  read.number("gain", args.gain);
  read.number("clamp", args.clamp);
  read.boolean("save_bits", args.save_bits);
  fold.lay_out(read, call, "x", !bias.given);
  args.bias = bias.of(read, args.layout.channels);
  fold.angle(read, angle);
  read.result_like("like", fold.in, &args.out);
  result_bits(read, "bits", args.layout, args.save_bits ? 1 : 0, args.bits);
  const int clamped = args.save_bits && args.clamp > 0 ? args.layout.components : 0;
  result_bits(read, "clamped", args.layout, clamped, args.clamped);
}

void fold_backward(Parser& read, Call& call) {
  Reflection fold(call);
  read.tensor("grad", Kind::kState, 0, fold.in);
  const Values bits(read, "bits", Kind::kBits, 0), clamped(read, "clamped", Kind::kBits);
  const Values angle(read, "angle", Kind::kAccumulation);
  fold.args.units.read_from(read);
  fold.read_kind(read);
  read.number("gain", fold.args.gain);
  read.boolean("transpose", fold.args.transpose);
  fold.lay_out(read, call, "grad");
  fold.angle(read, angle);
  fold.bits(read, bits, &clamped);
  read.result_like("like", fold.in, &fold.args.out);
}

void fold_rotate(Parser& read, Call& call) {
  Reflection fold(call);
  fold.args.kind = FoldKind::kHouseholder;
  read.tensor("value", Kind::kState, 0, fold.in);
  const Values bits(read, "bits", Kind::kBits, 0), weight(read, "weight", Kind::kAccumulation, 0);
  fold.args.units.read_from(read);
  fold.lay_out(read, call, "value");
  fold.args.weight = weight.of(read, fold.args.layout.lines());
  fold.bits(read, bits);
  read.result_like("like", fold.in, &fold.args.out);
}

void fold_angle_grad(Parser& read, Call& call) {
  Reflection fold(call);
  TensorRef output{};
  fold.args.kind = FoldKind::kHouseholder;
  read.tensor("grad", Kind::kState, 0, fold.in);
  read.tensor("output", Kind::kState, 0, output);
  const Values bits(read, "bits", Kind::kBits, 0);
  fold.args.units.read_from(read);
  fold.lay_out(read, call, "grad");
  if (read.ok() && !output.same_sizes(fold.in)) read.fail(Wrong::kShape, "output");
  if (read.ok() && !output.same_strides(fold.in)) read.fail(Wrong::kLayout, "output");
  fold.args.other = output.data;
  fold.bits(read, bits);
  call.wide = read.state() == Element::kFloat64;
  read.result("per_line", read.accumulation(), &call.sums, {fold.args.layout.lines()});
}

template <auto kernel>
void fold_cpu(Call& call) {
  cpu::launch_fold(call.as<FoldArgs>(), cpu::fold_kernels().*kernel);
}

// --- programs

struct SequenceCall : SequenceArgs {
  Units units;
  int narrow = 1, wide = 1;  // values of a unit, at both ends of the program
  int64_t parameter_count = 0;
  int direction = 0;
  bool save_bits = false;
};

// program, constants, width: five numbers to each instruction, and how many values a unit has.
void read_program(Parser& read, SequenceCall& args, const Values& parameters) {
  int64_t program[5 * kMaxInstructions + 1], width = 1;
  double constants[kMaxConstants + 1];
  const int64_t size = read.list("program", program, 5 * kMaxInstructions + 1);
  const int64_t count = read.list("constants", constants, kMaxConstants + 1);
  read.integer("width", width, 1, kMaxRows);
  const char* wrong = nullptr;
  if (read.options()) {
    args.narrow = args.wide = static_cast<int>(width);
    wrong = sequence_program(args, program, size, constants, count, args.parameter_count, args.wide);
  } else if (args.parameter_count > parameters.count()) {
    wrong = "an instruction leaves the constants of its program";
  }
  if (wrong != nullptr) read.fail(Wrong::kProgram, "program", -1, wrong);
  args.parameters = parameters.of(read, parameters.count());
}

// in is the narrow end of the program unless reversed; where the ends differ the result has halves of its own.
void lay_out(Parser& read, Call& call, SequenceCall& args, const TensorRef& in, const char* name, bool reversed,
             bool any_dim = true) {
  Units of_wide = args.units;
  of_wide.halves = true;
  const bool widens = args.wide != args.narrow;
  const int width = reversed ? args.wide : args.narrow;
  (widens && reversed ? of_wide : args.units)
      .lay_out(read, name, in, width, any_dim && width == 1 && !widens, args.in_layout);
  args.out_layout = args.in_layout;
  if (widens && reversed) {
    args.out_layout.components = args.narrow;
    args.out_layout.halves = false;
    args.out_layout.channels /= 2;
  } else if (widens) {
    args.out_layout.components = args.wide;
    args.out_layout.halves = true;
    args.out_layout.channels *= 2;
  }
  args.in = in.data;
  args.dtype = in.dtype();
  Result* out = read.result_like("sequence", in, &args.out);
  if (out == nullptr) return;
  call.work = in.numel();
  if (widens && in.ndim == 0) return read.fail(Wrong::kUnits, name, -1, "a widened tensor needs a channel dimension");
  if (widens) {
    out->sizes[args.units.dim] = args.out_layout.channels;
    out->like = -1;
    out->in_order_of(in);
  }
}

void fold_sequence(Parser& read, Call& call) {
  SequenceCall& args = call.begin<SequenceCall>();
  TensorRef x{};
  read.tensor("x", Kind::kState, 0, x);
  const Values bias(read, "bias", Kind::kAccumulation), parameters(read, "parameters", Kind::kAccumulation);
  args.units.read_from(read);
  read_program(read, args, parameters);
  read.boolean("save_bits", args.save_bits);
  lay_out(read, call, args, x, "x", false, !bias.given);
  args.bias = bias.of(read, args.in_layout.channels);
  result_bits(read, "program_bits", args.in_layout, args.save_bits ? args.planes : 0, args.bits);
}

void fold_sequence_apply(Parser& read, Call& call) {
  SequenceCall& args = call.begin<SequenceCall>();
  TensorRef value{};
  read.tensor("value", Kind::kState, 0, value);
  const Values bits(read, "bits", Kind::kBits, 0), parameters(read, "parameters", Kind::kAccumulation);
  args.units.read_from(read);
  constexpr std::string_view kDirections[] = {"tangent", "adjoint", "inverse"};
  read.choice("direction", kDirections, args.direction);
  args.mode = static_cast<SequenceMode>(1 + args.direction);
  read_program(read, args, parameters);
  lay_out(read, call, args, value, "value", args.mode != SequenceMode::kTangent);
  args.bits = static_cast<uint8_t*>(bits.of(read, args.in_layout.groups * args.planes * bit_bytes(args.in_layout)));
}

void fold_sequence_cpu(Call& call) { cpu::launch_sequence(call.as<SequenceArgs>()); }

}  // namespace

const std::vector<Op>& fold_ops() {
  using Kernels = cpu::FoldKernels;
  static const std::vector<Op> ops = {
      {"fold", fold, fold_cpu<&Kernels::forward>},
      {"fold_backward", fold_backward, fold_cpu<&Kernels::backward>},
      {"fold_rotate", fold_rotate, fold_cpu<&Kernels::rotate>},
      {"fold_angle_grad", fold_angle_grad, [](Call& call) { cpu::launch_angle_grad(call.as<FoldArgs>(), call.sums); }},
      {"fold_sequence", fold_sequence, fold_sequence_cpu},
      {"fold_sequence_apply", fold_sequence_apply, fold_sequence_cpu},
  };
  return ops;
}

}  // namespace pyfold::ops

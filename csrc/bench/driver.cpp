// Runs kernels over a fixed number of elements, without torch: for counting their instructions (tools/gates.py).
//   pyfold_driver KERNEL TIER ELEMENTS            KERNEL: a name of the table below, or "all"
// prints one line for each run, "name dtype", and calls pyfold_mark before each and after the last, so that
//   valgrind --tool=callgrind --dump-before=pyfold_mark pyfold_driver all avx2 16384
// writes one dump for each run.
//   pyfold_driver KERNEL TIER ELEMENTS stepped
// counts by itself, one step of the processor at a time, for instruction sets that valgrind does not know: "name dtype
// count".
//   pyfold_driver KERNEL TIER ELEMENTS digest
// prints "name dtype digest", of everything that the kernel writes when its operands are random numbers: the same on
// every instruction set and processor (tools/test_aarch64.sh).
#if defined(__linux__)
#include <signal.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/diffusion.h"
#include "cpu/folds.h"
#include "cpu/sequence.h"

using namespace pyfold;

extern "C" __attribute__((noinline, visibility("default"))) void pyfold_mark() { asm volatile("" ::: "memory"); }

namespace {

constexpr int64_t kMaxElements = 65536;
constexpr int64_t kChannels = 16;  // of the layout that folds see
constexpr int kOperands = 9;       // x, three models, base, four histories: the most that one kernel reads

struct Run {
  DType dtype;
  int64_t elements;
};

// Operands of any dtype. Their values do not matter to the kernels, which do not branch on them; the bytes 0x3C make
// numbers near 0.01 in every dtype, so that none is denormal, infinite or NaN.
struct Memory {
  std::vector<char> in[kOperands], out[4];
  std::vector<uint8_t> bits, clamped;
  std::vector<double> parameters, sums;
  Memory() : bits(kMaxElements / 8, 0x5A), clamped(kMaxElements / 4, 0), parameters(kChannels), sums(kMaxElements) {
    for (auto& operand : in) operand.assign(kMaxElements * sizeof(double), 0x3C);
    for (auto& result : out) result.assign(kMaxElements * sizeof(double), 0);
    std::memset(parameters.data(), 0x3C, parameters.size() * sizeof(double));
  }
};

Memory& memory() {
  static Memory shared;
  return shared;
}

uint64_t hashed(uint64_t hash, const void* data, size_t bytes) {  // FNV-1a
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001B3u;
  return hash;
}

Geometry geometry(const Run& run) { return {1, run.elements, 1, {run.elements}}; }

View view(std::vector<char>& data, const Run& run) {
  View result;
  result.data = data.data();
  result.dtype = run.dtype;
  result.row_stride = run.elements;
  result.stride[0] = 1;
  return result;
}

const int64_t kSeed = 42;

NoiseSource noise() {
  NoiseSource source;
  source.seeds = &kSeed;
  source.window.stride[0] = 1;
  return source;
}

void randn(const Run& run) {
  RandnArgs args;
  args.geometry = geometry(run);
  args.noise = noise();
  args.out = view(memory().out[0], run);
  cpu::diffusion_kernels().randn(args, 0, cpu::task_count(args.geometry));
}

struct Noising {
  double row[kNoisingColumns] = {0.8, 0.6, -0.6, 0.8, 0.5};
  NoisingArgs args;
  explicit Noising(const Run& run) {
    args.geometry = geometry(run);
    args.table.data = row;
    args.table.rows = 1;
    args.noise = noise();
    args.x0 = view(memory().in[0], run);
    args.prediction = view(memory().in[1], run);
    args.cotangent = view(memory().in[2], run);
    args.out = view(memory().out[0], run);
    args.row_scale = memory().parameters.data();
  }
  int64_t tasks() const { return cpu::task_count(args.geometry); }
};

template <bool kTarget>
void add_noise(const Run& run) {
  Noising noising(run);
  if (kTarget) noising.args.target = view(memory().out[1], run);
  cpu::diffusion_kernels().add_noise(noising.args, 0, noising.tasks());
}

void residual_square(const Run& run) {
  Noising noising(run);
  cpu::diffusion_kernels().residual_square(noising.args, memory().sums.data(), 0, noising.tasks());
}

void residual_dot(const Run& run) {
  Noising noising(run);
  cpu::diffusion_kernels().residual_dot(noising.args, memory().sums.data(), 0, noising.tasks());
}

void residual_scale(const Run& run) {
  Noising noising(run);
  cpu::diffusion_kernels().residual_scale(noising.args, 0, noising.tasks());
}

// What the steps of a sampler ask of the one kernel that runs them all.
struct Step {
  const char* coefficients;  // those that are not zero
  int models = 1, history = 0;
  bool base = false, history_out = false, next_input = false, channels_last = false;
};

constexpr Step kFlowStep{"a c_u s"};
constexpr Step kDdimStep{"p q c_x0 c_u s"};
constexpr Step kDdpmStep{"a p q c_x0 d1"};
constexpr Step kMultistep{"a p q c_x0 c_u t b1 b2", 1, 2, false, true};
constexpr Step kGuidedStep{"a g2 s c_u c_in", 2, 0, false, false, true};
constexpr Step kWholeStep{"a a_base b1 b2 b3 b4 c_x0 c_u d1 d2 d3 g2 g3 p q r s t c_in", 3, 4, true, true, true};
constexpr Step kStridedStep{"a p q c_x0 d1", 1, 0, false, false, false, true};

std::vector<double> step_row(const Step& step) {
  static const char* const kNames[] = {
#define PYFOLD_NAME(name) " " #name " ",
      PYFOLD_AFFINE_STEP_COLUMNS(PYFOLD_NAME)
#undef PYFOLD_NAME
  };
  const std::string padded = std::string(" ") + step.coefficients + " ";
  std::vector<double> row(kStepColumns);
  for (int i = 0; i < kStepColumns; ++i) row[i] = padded.find(kNames[i]) != std::string::npos ? 0.3 : 0;
  row[kStep_g1] = 1;
  row[kStep_clip_min] = -1;
  row[kStep_clip_max] = 1;
  return row;
}

// Made before main, so that its making is not counted.
template <const Step& step>
const std::vector<double> kStepRow = step_row(step);

template <const Step& step>
void affine_step(const Run& run) {
  AffineStepArgs args;
  args.geometry = geometry(run);
  args.table.data = kStepRow<step>.data();
  args.table.rows = 1;
  args.noise = noise();
  args.x = view(memory().in[0], run);
  for (int j = 0; j < step.models; ++j) args.models[j] = view(memory().in[1 + j], run);
  if (step.base) args.base = view(memory().in[4], run);
  for (int i = 0; i < step.history; ++i) args.history[i] = view(memory().in[5 + i], run);
  args.out = view(memory().out[0], run);
  if (step.history_out) args.history_out = view(memory().out[1], run);
  if (step.next_input) args.next_input = view(memory().out[2], run);
  if (step.channels_last) {
    // Channels outside, as the logical order has them; inside, as memory does.
    args.geometry.ndim = 2;
    args.geometry.size[0] = kChannels;
    args.geometry.size[1] = run.elements / kChannels;
    for (View* each : {&args.x, &args.models[0], &args.out}) {
      each->flat = false;
      each->stride[0] = 1;
      each->stride[1] = kChannels;
    }
  }
  cpu::diffusion_kernels().affine_step(args, 0, cpu::task_count(args.geometry));
}

// A kind of fold and the smallest set of channels that it folds together.
struct Fold {
  FoldKind kind;
  int components;
};

constexpr Fold kAbs{FoldKind::kAbs, 1};
constexpr Fold kMaxMin{FoldKind::kMaxMin, 2};
constexpr Fold kHouseholder{FoldKind::kHouseholder, 2};

FoldArgs fold_args(const Run& run, const Fold& fold, bool channels_last) {
  FoldArgs args;
  args.kind = fold.kind;
  const int64_t each = run.elements / kChannels;
  args.layout = {channels_last ? each : 1, kChannels, channels_last ? 1 : each, false, fold.components, 1};
  args.dtype = run.dtype;
  args.in = memory().in[0].data();
  args.other = memory().in[1].data();
  args.out = memory().out[0].data();
  args.bits = memory().bits.data();
  args.angle = args.half_sine = args.half_cosine = args.weight = memory().parameters.data();
  return args;
}

template <const Fold& fold, bool kBackward, bool kChannelsLast = false>
void fold_values(const Run& run) {
  const FoldArgs args = fold_args(run, fold, kChannelsLast);
  const auto& kernels = cpu::fold_kernels();
  (kBackward ? kernels.backward : kernels.forward)(args, 0, cpu::fold_tiles(args.layout));
}

// With bias, gain and clamp: what a layer after a convolution may ask for.
template <const Fold& fold, bool kBackward>
void fold_dressed(const Run& run) {
  FoldArgs args = fold_args(run, fold, false);
  args.bias = kBackward ? nullptr : memory().parameters.data();
  args.gain = 1.5;
  args.clamp = 256;
  args.clamped = memory().clamped.data();
  const auto& kernels = cpu::fold_kernels();
  (kBackward ? kernels.backward : kernels.forward)(args, 0, cpu::fold_tiles(args.layout));
}

void fold_rotate(const Run& run) {
  const FoldArgs args = fold_args(run, kHouseholder, false);
  cpu::fold_kernels().rotate(args, 0, cpu::fold_tiles(args.layout));
}

void fold_angle_grad(const Run& run) {
  const FoldArgs args = fold_args(run, kHouseholder, false);
  cpu::fold_kernels().angle_grad(args, memory().sums.data(), 0, cpu::fold_tiles(args.layout));
}

// Of angles in the accumulation type.
void half_angles(const Run& run) {
  const DType type = run.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  cpu::fold_kernels().half_angles(type, memory().in[0].data(), run.elements, memory().out[0].data(),
                                  memory().out[1].data());
}

// Programs of folds: each instruction by itself on the fewest rows that it takes, and a sort of eight values.
struct Sequence {
  FoldOp op;
  int rows, planes;
};

constexpr Sequence kSequences[] = {
    {FoldOp::kMirror, 1, 1}, {FoldOp::kLeaky, 1, 1},  {FoldOp::kBox, 1, 1},    {FoldOp::kTri, 1, 1},
    {FoldOp::kSwap, 2, 1},   {FoldOp::kLine, 2, 1},   {FoldOp::kPlane, 16, 1}, {FoldOp::kClamp, 1, 1},
    {FoldOp::kAffine, 2, 0}, {FoldOp::kMatrix, 2, 0}, {FoldOp::kBall, 4, 1},   {FoldOp::kSphere, 4, 2},
};

void run_sequence(SequenceArgs& args, const Run& run, int rows) {
  args.in_layout = args.out_layout = {1, kChannels, run.elements / kChannels, false, rows, 1};
  args.dtype = run.dtype;
  args.in = memory().in[0].data();
  args.out = memory().out[0].data();
  args.bits = memory().bits.data();
  for (double& constant : args.constants) constant = 0.7;
  const int64_t tiles = cpu::fold_tiles(args.in_layout, cpu::sequence_tile(args));
  cpu::sequence_kernels().run(args, 0, tiles);
}

// Of kSequences.
template <int which, SequenceMode mode>
void sequence_one(const Run& run) {
  constexpr Sequence sequence = kSequences[which];
  SequenceArgs args = {};
  args.mode = mode;
  args.count = 1;
  args.planes = sequence.planes;
  args.instructions[0] = {static_cast<int16_t>(sequence.op), 0, 1, 0, 0};
  run_sequence(args, run, sequence.rows);
}

// Batcher's network of 19 swaps.
template <SequenceMode mode>
void sort_eight(const Run& run) {
  constexpr int kSwaps[19][2] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {2, 4}, {3, 5},
                                 {0, 1}, {2, 3}, {4, 5}, {6, 7}, {1, 4}, {3, 6}, {1, 2}, {3, 4}, {5, 6}};
  SequenceArgs args = {};
  args.mode = mode;
  for (const auto& swap : kSwaps) {
    args.instructions[args.count++] = {static_cast<int16_t>(FoldOp::kSwap), static_cast<int16_t>(swap[0]),
                                       static_cast<int16_t>(swap[1]), 0, static_cast<int16_t>(args.planes++)};
  }
  run_sequence(args, run, 8);
}

// Random numbers for operands, zeros for results.
void refill(const Run& run) {
  Memory& m = memory();
  for (int64_t i = 0; i < kOperands; ++i) {
    RandnArgs args;
    args.geometry = geometry(run);
    args.noise = noise();
    args.noise.seeds = &i;
    args.out = view(m.in[i], run);
    cpu::diffusion_kernels().randn(args, 0, cpu::task_count(args.geometry));
  }
  for (auto& result : m.out) result.assign(result.size(), 0);
  m.clamped.assign(m.clamped.size(), 0);
  m.sums.assign(m.sums.size(), 0);
  for (size_t i = 0; i < m.bits.size(); ++i) m.bits[i] = static_cast<uint8_t>(i * 37 + (i >> 5));
  // Slopes and scales below 1 to the kernels that read two of them, angles to those that read a channel's.
  for (size_t i = 0; i < m.parameters.size(); ++i) m.parameters[i] = 0.25 + 0.03125 * static_cast<double>(i);
}

uint64_t digest_of(const Run& run) {
  Memory& m = memory();
  uint64_t hash = 0xCBF29CE484222325u;
  for (const auto& result : m.out) hash = hashed(hash, result.data(), run.elements * sizeof(double));
  hash = hashed(hash, m.bits.data(), m.bits.size());
  hash = hashed(hash, m.clamped.data(), m.clamped.size());
  return hashed(hash, m.sums.data(), m.sums.size() * sizeof(double));
}

// Every kernel whose instructions are counted. A new one is a line.
struct Kernel {
  const char* name;
  void (*run)(const Run& run);
};

const Kernel kKernels[] = {
    {"randn", randn},
    {"add_noise", add_noise<false>},
    {"add_noise_target", add_noise<true>},
    {"residual_square", residual_square},
    {"residual_dot", residual_dot},
    {"residual_scale", residual_scale},
    {"step_flow", affine_step<kFlowStep>},
    {"step_ddim", affine_step<kDdimStep>},
    {"step_ddpm", affine_step<kDdpmStep>},
    {"step_multistep", affine_step<kMultistep>},
    {"step_guided", affine_step<kGuidedStep>},
    {"step_everything", affine_step<kWholeStep>},
    {"step_channels_last", affine_step<kStridedStep>},
    {"fold_abs", fold_values<kAbs, false>},
    {"fold_abs_backward", fold_values<kAbs, true>},
    {"fold_abs_dressed", fold_dressed<kAbs, false>},
    {"fold_abs_dressed_backward", fold_dressed<kAbs, true>},
    {"fold_maxmin", fold_values<kMaxMin, false>},
    {"fold_maxmin_backward", fold_values<kMaxMin, true>},
    {"fold_maxmin_channels_last", fold_values<kMaxMin, false, true>},
    {"fold_maxmin_channels_last_backward", fold_values<kMaxMin, true, true>},
    {"fold_maxmin_dressed", fold_dressed<kMaxMin, false>},
    {"fold_householder", fold_values<kHouseholder, false>},
    {"fold_householder_backward", fold_values<kHouseholder, true>},
    {"fold_rotate", fold_rotate},
    {"fold_angle_grad", fold_angle_grad},
    {"half_angles", half_angles},
    {"sequence_mirror", sequence_one<0, SequenceMode::kForward>},
    {"sequence_mirror_adjoint", sequence_one<0, SequenceMode::kAdjoint>},
    {"sequence_leaky", sequence_one<1, SequenceMode::kForward>},
    {"sequence_leaky_adjoint", sequence_one<1, SequenceMode::kAdjoint>},
    {"sequence_box", sequence_one<2, SequenceMode::kForward>},
    {"sequence_box_adjoint", sequence_one<2, SequenceMode::kAdjoint>},
    {"sequence_tri", sequence_one<3, SequenceMode::kForward>},
    {"sequence_swap", sequence_one<4, SequenceMode::kForward>},
    {"sequence_swap_adjoint", sequence_one<4, SequenceMode::kAdjoint>},
    {"sequence_line", sequence_one<5, SequenceMode::kForward>},
    {"sequence_line_adjoint", sequence_one<5, SequenceMode::kAdjoint>},
    {"sequence_plane", sequence_one<6, SequenceMode::kForward>},
    {"sequence_plane_adjoint", sequence_one<6, SequenceMode::kAdjoint>},
    {"sequence_clamp", sequence_one<7, SequenceMode::kForward>},
    {"sequence_scale", sequence_one<8, SequenceMode::kForward>},
    {"sequence_matrix", sequence_one<9, SequenceMode::kForward>},
    {"sequence_ball", sequence_one<10, SequenceMode::kForward>},
    {"sequence_sphere", sequence_one<11, SequenceMode::kForward>},
    {"sequence_sort_8", sort_eight<SequenceMode::kForward>},
    {"sequence_sort_8_adjoint", sort_eight<SequenceMode::kAdjoint>},
};

struct NamedDType {
  const char* name;
  DType dtype;
};

const NamedDType kDTypes[] = {{"float32", DType::kFloat32},
                              {"float64", DType::kFloat64},
                              {"bfloat16", DType::kBFloat16},
                              {"float16", DType::kFloat16}};

#if defined(__linux__)
// Steps of a child process between two stops, with the kernel's run between them if there is one; -1 where the system
// does not let its processes be traced.
int64_t steps(const Kernel* kernel, const Run& run) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) return -1;
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(1);
    raise(SIGSTOP);
    if (kernel != nullptr) kernel->run(run);
    raise(SIGSTOP);
    _exit(0);
  }
  int64_t count = -1;
  int status = 0;
  if (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
    do {
      ++count;
      if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 || waitpid(child, &status, 0) != child) break;
    } while (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP) count = -1;
  }
  if (WIFSTOPPED(status)) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
  }
  return count;
}
#else
int64_t steps(const Kernel*, const Run&) { return -1; }
#endif

}  // namespace

int main(int argc, char** argv) {
  const bool stepped = argc == 5 && std::strcmp(argv[4], "stepped") == 0;
  const bool digest = argc == 5 && std::strcmp(argv[4], "digest") == 0;
  if (argc != 4 && !stepped && !digest) {
    std::fprintf(stderr, "usage: pyfold_driver KERNEL|all TIER ELEMENTS [stepped|digest]\n");
    return 2;
  }
  const int64_t elements = std::atoll(argv[3]);
  if (elements < 128 || elements > kMaxElements || elements % 128 != 0) {
    std::fprintf(stderr, "ELEMENTS must be a multiple of 128 up to %lld\n", static_cast<long long>(kMaxElements));
    return 2;
  }
#if defined(__linux__)
  // The same addresses in every run, because copies of unaligned memory take some instructions more.
  if (stepped && (personality(0xffffffff) & ADDR_NO_RANDOMIZE) == 0 &&
      personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE) >= 0) {
    execv("/proc/self/exe", argv);
  }
#endif
  cpu::set_tier(argv[2]);
  memory();
  bool found = false;
  for (const Kernel& kernel : kKernels) {
    if (std::strcmp(argv[1], "all") != 0 && std::strcmp(argv[1], kernel.name) != 0) continue;
    found = true;
    for (const NamedDType& each : kDTypes) {
      // A step takes as long as thousands of instructions: the two dtypes that training runs in.
      if (stepped && each.dtype != DType::kFloat32 && each.dtype != DType::kBFloat16) continue;
      const Run run = {each.dtype, elements};
      if (stepped) {
        const int64_t empty = steps(nullptr, run), count = steps(&kernel, run);
        if (empty < 0 || count < 0) {
          std::fprintf(stderr, "this system does not let a process trace its child\n");
          return 3;
        }
        std::printf("%s %s %lld\n", kernel.name, each.name, static_cast<long long>(count - empty));
        continue;
      }
      if (digest) {
        refill(run);
        kernel.run(run);
        const auto bits = static_cast<unsigned long long>(digest_of(run));
        std::printf("%s %s %016llx\n", kernel.name, each.name, bits);
        continue;
      }
      std::printf("%s %s\n", kernel.name, each.name);
      pyfold_mark();
      kernel.run(run);
    }
  }
  pyfold_mark();
  if (!found) {
    std::fprintf(stderr, "no kernel is named %s\n", argv[1]);
    return 2;
  }
  return 0;
}

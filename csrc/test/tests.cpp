// Torch-free tests of what the Python tests cannot reach: conversions bit by bit, the merging of dimensions, packed
// bits, and the GPU's arithmetic (four lanes of a step, one unit of a fold at a time) against the CPU's (a tile).
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/bits.h"
#include "core/dtype.h"
#include "core/lanes.h"
#include "core/normal.h"
#include "core/view.h"
#include "cpu/diffusion.h"
#include "cpu/flags.h"
#include "cpu/folds.h"
#include "cpu/sequence.h"

using namespace pyfold;

namespace {

int failures = 0;

#define EXPECT(condition)                                                       \
  do {                                                                          \
    if (!(condition)) {                                                         \
      ++failures;                                                               \
      std::printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
    }                                                                           \
  } while (0)

// Every half and every bfloat16 survives a trip to float32 and back.
void test_half_types_round_trip() {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    Float16 half_back;
    narrow(widen(half), half_back);
    const bool half_nan = (bits & 0x7FFFu) > 0x7C00u;
    EXPECT(half_nan ? (half_back.bits & 0x7FFFu) > 0x7C00u : half_back.bits == half.bits);
    const BFloat16 brain{static_cast<uint16_t>(bits)};
    BFloat16 brain_back;
    narrow(widen(brain), brain_back);
    const bool brain_nan = (bits & 0x7FFFu) > 0x7F80u;
    EXPECT(brain_nan ? (brain_back.bits & 0x7FFFu) > 0x7F80u : brain_back.bits == brain.bits);
  }
}

// Between two neighbours the nearer one wins, and the even one where they are equally near.
void test_half_rounding() {
  for (uint32_t bits = 0; bits < 0x7BFFu; ++bits) {
    const float low = widen(Float16{static_cast<uint16_t>(bits)});
    const float high = widen(Float16{static_cast<uint16_t>(bits + 1)});
    const float middle = 0.5f * (low + high);
    Float16 rounded;
    narrow(middle, rounded);
    EXPECT(rounded.bits == (bits % 2 == 0 ? bits : bits + 1));
    narrow(std::nextafter(middle, 0.0f), rounded);
    EXPECT(rounded.bits == bits);
    narrow(std::nextafter(middle, 1e9f), rounded);
    EXPECT(rounded.bits == bits + 1);
  }
  Float16 rounded;
  narrow(65519.0f, rounded);
  EXPECT(rounded.bits == 0x7BFFu);
  narrow(65520.0f, rounded);
  EXPECT(rounded.bits == 0x7C00u);
}

void test_bits() {
  for (int byte = 0; byte < 256; ++byte) {
    uint8_t flags[8];
    unpack_bits(static_cast<uint8_t>(byte), flags);
    for (int i = 0; i < 8; ++i) EXPECT(flags[i] == (byte >> i & 1));
    EXPECT(pack_bits(flags) == byte);
  }
}

// Offsets are the same before and after dimensions merge.
void test_collapse() {
  Geometry geometry{2, 2 * 3 * 4 * 5, 4, {2, 3, 4, 5}};
  const Geometry before = geometry;
  View rows, channels_last;
  const int64_t row_major[] = {60, 20, 5, 1}, last[] = {1, 40, 10, 2};
  std::memcpy(rows.stride, row_major, sizeof row_major);
  std::memcpy(channels_last.stride, last, sizeof last);
  rows.flat = channels_last.flat = false;
  View rows_before = rows, last_before = channels_last;
  Window window;
  std::memcpy(window.stride, row_major, sizeof row_major);
  View* const views[] = {&rows, &channels_last};
  collapse(geometry, views, 2, window);
  EXPECT(geometry.ndim == 2);
  EXPECT(rows.flat && !channels_last.flat && window.flat);
  for (int64_t i = 0; i < geometry.numel; ++i) {
    EXPECT(offset_of(rows, geometry, i) == offset_of(rows_before, before, i));
    EXPECT(offset_of(channels_last, geometry, i) == offset_of(last_before, before, i));
  }
}

// Where any order of elements will do, operands that lie alike are walked as they lie.
void test_order_by_memory() {
  Geometry geometry{2, 3 * 4 * 5, 3, {3, 4, 5}};
  View one, other;
  const int64_t channels_last[] = {1, 15, 3};
  std::memcpy(one.stride, channels_last, sizeof channels_last);
  std::memcpy(other.stride, channels_last, sizeof channels_last);
  Window window;
  const int64_t row_major[] = {20, 5, 1};
  std::memcpy(window.stride, row_major, sizeof row_major);
  View* const views[] = {&one, &other};
  collapse(geometry, views, 2, window, false);
  EXPECT(geometry.ndim == 1 && geometry.size[0] == geometry.numel);
  EXPECT(one.flat && other.flat && window.flat);
}

// Four lanes at a time, as a GPU thread works, without its memory: the programs' text is one, so its bits must be too.
struct FourLanes {
  using Acc = float;
  using Cells = TableCells<float>;
  static constexpr int kLanes = 4;
  struct Register {
    float lane[4] = {};

    template <class C>
    friend Term<C, Register> operator*(C coefficient, const Register& value) {
      return {coefficient, value};
    }
  };
  const Geometry& geometry;
  int64_t at_row, start;

  int64_t row() const { return at_row; }
  Cells cells(const Table& table, int64_t columns) const { return {table_row(table, columns, at_row)}; }
  void load(Register& out, const View& view) const {
    const float* first = static_cast<const float*>(view.data) + at_row * view.row_stride + start;
    for (int i = 0; i < 4; ++i) out.lane[i] = start + i < geometry.numel ? first[i] : 0.0f;
  }
  void store(const View& view, const Register& value) const {
    float* first = static_cast<float*>(view.data) + at_row * view.row_stride + start;
    for (int i = 0; i < 4 && start + i < geometry.numel; ++i) first[i] = value.lane[i];
  }
  void load(Register& out, const Noise& noise) const {
    normal_block(noise.key(at_row), static_cast<uint64_t>(start) / 4, out.lane);
  }
  template <class Terms>
  void let(Register& out, const Terms& sum) const {
    add_up(*this, out, sum);
  }
  template <class Terms>
  void write(const View& view, Register& out, const Terms& sum) const {
    let(out, sum);
    store(view, out);
  }
  void keep(Register&) const {}
};

void test_four_lanes_equal_a_tile() {
  constexpr int64_t kRows = 2, kNumel = 1003;
  std::vector<float> x(kRows * kNumel), model(kRows * kNumel), tile(kRows * kNumel), lanes(kRows * kNumel);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = std::sin(0.1f * static_cast<float>(i));
    model[i] = std::cos(0.37f * static_cast<float>(i));
  }
  double row[kStepColumns] = {};
  const auto set = [&](int column, double value) { row[column] = value; };
  set(kStep_a, 0.93), set(kStep_c_x0, 0.2), set(kStep_c_u, -0.1), set(kStep_d1, 0.3), set(kStep_d2, -0.2);
  set(kStep_g1, 1.2), set(kStep_p, 1.1), set(kStep_q, -0.4), set(kStep_clip_min, -0.5), set(kStep_clip_max, 0.5);
  set(kStep_r, 0.3), set(kStep_s, 0.7), set(kStep_t, -0.2), set(kStep_n1, 5), set(kStep_n2, 6);
  const int64_t seeds[kRows] = {42, -7};
  AffineStepArgs args;
  args.geometry = {kRows, kNumel, 1, {kNumel}};
  args.table.data = row;
  args.table.rows = 1;
  args.noise.seeds = seeds;
  args.noise.stream = 1;
  args.noise.window.stride[0] = 1;
  const auto view = [&](View& v, std::vector<float>& data) {
    v.data = data.data();
    v.row_stride = kNumel;
    v.stride[0] = 1;
  };
  view(args.x, x);
  view(args.models[0], model);
  view(args.out, tile);
  cpu::diffusion_kernels().affine_step(args, 0, cpu::task_count(args.geometry));
  view(args.out, lanes);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t start = 0; start < kNumel; start += 4) {
      FourLanes four{args.geometry, r, start};
      affine_step(four, args);
    }
  }
  EXPECT(std::memcmp(tile.data(), lanes.data(), tile.size() * sizeof(float)) == 0);
}

// Stream and step are sums modulo 2^32 of the number, what the device holds and the row's counter, whose high half
// counts in streams of 2048.
void test_noise_of_streams_and_positions() {
  constexpr int64_t kRows = 3, kNumel = 70;
  constexpr int64_t kWrap = int64_t{1} << 32;
  const int64_t seeds[kRows] = {5, 6, 7};
  const int64_t streams[kRows] = {2, kWrap + 1, -1}, positions[kRows] = {10, -3, 7 * kWrap + 4};
  const auto draw = [&](uint32_t stream, uint32_t step, int64_t streams_stride, int64_t positions_stride, bool device) {
    std::vector<float> out(kRows * kNumel);
    RandnArgs args;
    args.geometry = {kRows, kNumel, 1, {kNumel}};
    args.noise = {seeds,
                  1,
                  stream,
                  step,
                  device ? streams : nullptr,
                  streams_stride,
                  device ? positions : nullptr,
                  positions_stride,
                  {}};
    args.noise.window.stride[0] = 1;
    args.out.data = out.data();
    args.out.row_stride = kNumel;
    args.out.stride[0] = 1;
    cpu::diffusion_kernels().randn(args, 0, cpu::task_count(args.geometry));
    return out;
  };
  const auto same_row = [&](const std::vector<float>& a, const std::vector<float>& b, int64_t row) {
    return std::memcmp(&a[row * kNumel], &b[row * kNumel], kNumel * sizeof(float)) == 0;
  };
  EXPECT(draw(1, 2, 0, 0, true) == draw(3, 12, 0, 0, false));
  const std::vector<float> each = draw(4, 6, 1, 1, true);
  EXPECT(same_row(each, draw(6, 16, 0, 0, false), 0));
  EXPECT(same_row(each, draw(5, 3, 0, 0, false), 1));
  EXPECT(same_row(each, draw(3, 10, 0, 0, false), 2));

  double row[kStepColumns] = {};
  row[kStep_d1] = 1;
  std::vector<float> x(kRows * kNumel), out(kRows * kNumel);
  AffineStepArgs args;
  args.geometry = {kRows, kNumel, 1, {kNumel}};
  args.table = {row, 1, nullptr, 0};
  args.noise = {seeds, 1, 4, 6, streams, 1, positions, 1, {}};
  args.noise.window.stride[0] = 1;
  for (View* view : {&args.x, &args.out}) {
    view->data = view == &args.x ? x.data() : out.data();
    view->row_stride = kNumel;
    view->stride[0] = 1;
  }
  const auto step = [&](double counter) {
    row[kStep_n1] = counter;
    cpu::diffusion_kernels().affine_step(args, 0, cpu::task_count(args.geometry));
    return out;
  };
  EXPECT(step(9) == draw(4, 15, 1, 1, true));
  // The high half of a counter goes to the stream, from bit 11 on.
  EXPECT(step(-2.5) == draw(4 - 2048, 4, 1, 1, true));
  EXPECT(step(0x1p40 + 3) == draw(4 + (256 << 11), 9, 1, 1, true));
  EXPECT(step(0x1p53 - 1) == draw(4 + 0xFFFFF800, 5, 1, 1, true));
  for (double beyond : {0x1p63, -0x1p70, static_cast<double>(NAN), static_cast<double>(INFINITY)})
    EXPECT(step(beyond) == each);
}

// A key's element 0 lies in its block, and blocks wrap at 2^64: what a window of the seed's noise draws.
void test_noise_of_keys() {
  constexpr int64_t kNumel = 1500, kBlocks[] = {0, 1, 0xFFFFFFFF, int64_t{1} << 61, -3, -200};
  for (const int64_t block : kBlocks) {
    const int64_t key[] = {-42, block};
    std::vector<float> out(kNumel), lanes(kNumel + 3);
    RandnArgs args;
    args.geometry = {1, kNumel, 1, {kNumel}};
    args.noise.seeds = key;
    args.noise.seeds_stride = 2;
    args.noise.window.stride[0] = 1;
    args.out.data = out.data();
    args.out.row_stride = kNumel;
    args.out.stride[0] = 1;
    cpu::diffusion_kernels().randn(args, 0, cpu::task_count(args.geometry));
    for (int64_t i = 0; i < kNumel; i += 4) {
      float four[4];
      normal_block(noise_key(key[0], 0, 0, 0), static_cast<uint64_t>(block) + i / 4, four);
      std::memcpy(&lanes[i], four, sizeof four);
    }
    EXPECT(std::memcmp(out.data(), lanes.data(), kNumel * sizeof(float)) == 0);
  }
}

// One unit as a GPU thread holds it; writes a bit for each plane.
struct OneUnit {
  const SequenceArgs& args;
  int64_t unit;
  float rows[4], one_scratch;
  uint8_t one_flag[2];

  float* row(int r) { return rows + r; }
  float* scratch() { return &one_scratch; }
  int lanes() const { return 1; }
  uint8_t* flags(int k) { return one_flag + k; }
  uint8_t* byte(int plane) const { return args.bits + plane * args.in_layout.bytes_per_group() + unit / 8; }
  void write(int plane, const uint8_t* flags) {
    *byte(plane) = static_cast<uint8_t>((*byte(plane) & ~(1 << unit % 8)) | *flags << unit % 8);
  }
  void read(int plane, uint8_t* flags) const { *flags = *byte(plane) >> (unit % 8) & 1; }
};

void run_units(const SequenceArgs& args) {
  for (int64_t unit = 0; unit < args.in_layout.units(); ++unit) {
    OneUnit one{args, unit, {}, 0, {}};
    const FoldRun run = fold_run(args.in_layout, unit);
    for (int k = 0; k < 4; ++k) one.rows[k] = static_cast<const float*>(args.in)[run.offset + k * run.apart];
    SequenceRunner<float, OneUnit>(args, one).run();
    for (int k = 0; k < 4; ++k) static_cast<float*>(args.out)[run.offset + k * run.apart] = one.rows[k];
  }
}

// Every instruction, in every direction that it has, gives the same bits for one unit as for a tile of them.
void test_one_unit_equals_a_tile() {
  SequenceArgs args = {};
  args.in_layout = args.out_layout = {3, 8, 97, false, 4, 1};
  const auto add = [&](FoldOp op, int i, int j, int constant, int planes) {
    args.instructions[args.count++] = {static_cast<int16_t>(op), static_cast<int16_t>(i), static_cast<int16_t>(j),
                                       static_cast<int16_t>(constant), static_cast<int16_t>(args.planes)};
    args.planes += planes;
  };
  const double constants[] = {0.3, 0.8, 0.6, -0.2, 0.5, 1.5, 0.4, 0.9};
  for (int k = 0; k < 8; ++k) args.constants[k] = constants[k];
  for (int k = 0; k < 4; ++k) args.constants[8 + 5 * k] = 2.0, args.constants[24 + 5 * k] = 0.5;  // M and its inverse
  add(FoldOp::kMirror, 0, 0, 0, 1);
  add(FoldOp::kLeaky, 1, 0, 0, 1);
  add(FoldOp::kBox, 2, 0, 1, 1);
  add(FoldOp::kBoxSides, 3, 0, 1, 2);
  add(FoldOp::kTri, 0, 0, 2, 1);
  add(FoldOp::kTriCell, 1, 0, 2, kCellPlanes);
  add(FoldOp::kSwap, 0, 3, 0, 1);
  add(FoldOp::kLine, 1, 2, 2, 1);
  add(FoldOp::kPlane, 0, 0, 1, 1);
  add(FoldOp::kAffine, 0, 1, 5, 0);
  add(FoldOp::kMatrix, 0, 0, 8, 0);
  add(FoldOp::kClamp, 0, 0, 5, 4);
  const int64_t numel = args.in_layout.units() * 4, bytes = args.planes * args.in_layout.bytes_per_group();
  std::vector<float> x(numel), tile(numel), units(numel);
  for (int64_t i = 0; i < numel; ++i) x[i] = static_cast<float>(i * 7919 % 613) * 0.01f - 3.0f;
  x[5] = NAN;
  x[77] = INFINITY;
  std::vector<uint8_t> tile_bits(bytes), unit_bits(bytes);
  args.in = x.data();
  const auto both = [&] {
    args.out = tile.data();
    args.bits = tile_bits.data();
    cpu::sequence_kernels().run(args, 0, cpu::fold_tiles(args.in_layout, cpu::sequence_tile(args)));
    args.out = units.data();
    args.bits = unit_bits.data();
    run_units(args);
    EXPECT(std::memcmp(tile.data(), units.data(), numel * sizeof(float)) == 0);
    EXPECT(tile_bits == unit_bits);
  };
  both();
  for (SequenceMode mode : {SequenceMode::kTangent, SequenceMode::kAdjoint}) {
    args.mode = mode;
    both();
  }
  // The way forth and back, for instructions that remember enough for it, and the spheres, whose gradient is no map.
  args.mode = SequenceMode::kForward;
  args.count = args.planes = 0;
  add(FoldOp::kMirror, 0, 0, 0, 1);
  add(FoldOp::kSphere, 0, 0, 5, 2);
  add(FoldOp::kBall, 0, 0, 5, 1);
  add(FoldOp::kMatrix, 0, 0, 8, 0);
  add(FoldOp::kTriCell, 1, 0, 2, kCellPlanes);
  both();
  const std::vector<float> y = tile;
  args.in = y.data();
  args.mode = SequenceMode::kInverse;
  both();
  for (int64_t i = 0; i < numel; ++i)
    EXPECT(!std::isfinite(x[i]) || !std::isfinite(units[i]) || std::abs(units[i] - x[i]) < 1e-4f);
}

// Flags of every count, packed with every instruction set's way; this file is compiled for the baseline's.
void test_flags() {
  for (int count = 1; count <= 200; ++count) {
    std::vector<uint8_t> flags(208), back(208), bytes(26), expected(26);
    for (int i = 0; i < count; ++i) flags[i] = i * i % 7 < 3;
    for (int i = 0; i < count; i += 8) expected[i / 8] = pack_bits(flags.data() + i);
    pack_flags(flags.data(), bytes.data(), count);
    EXPECT(bytes == expected);
    unpack_flags(bytes.data(), back.data(), count);
    EXPECT(std::memcmp(flags.data(), back.data(), count) == 0);
  }
}

}  // namespace

int main() {
  test_half_types_round_trip();
  test_half_rounding();
  test_bits();
  test_collapse();
  test_order_by_memory();
  test_flags();
  for (int i = 0; i < cpu::kTierCount; ++i) {
    const auto tier = static_cast<cpu::Tier>(i);
    if (!cpu::tier_supported(tier)) continue;
    cpu::set_tier(cpu::tier_name(tier));
    test_four_lanes_equal_a_tile();
    test_noise_of_streams_and_positions();
    test_noise_of_keys();
    test_one_unit_equals_a_tile();
  }
  std::printf(failures == 0 ? "all hold\n" : "%d do not hold\n", failures);
  return failures == 0 ? 0 : 1;
}

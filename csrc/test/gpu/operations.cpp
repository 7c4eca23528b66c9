#include "test/gpu/operations.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "test/gpu/fault.h"
#include "test/gpu/half.h"

namespace pyfold::gpu {
namespace {

using u8 = uint8_t;
using s8 = int8_t;
using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;
using u128 = unsigned __int128;
using s128 = __int128;

struct Predicate {};

template <class T>
constexpr Type type_of() {
  if constexpr (std::is_same_v<T, Predicate>) {
    return {'p', 0};
  } else if constexpr (std::is_floating_point_v<T>) {
    return {'f', sizeof(T)};
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {'f', 2};
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return {'h', 2};
  } else {
    return {std::is_signed_v<T> ? 's' : 'u', sizeof(T)};
  }
}

// The names that PTX has for T.
template <class T>
std::vector<std::string> names_of() {
  const Type type = type_of<T>();
  const std::string bits = std::to_string(type.bytes * 8);
  if (type.kind == 'h') return {"bf16"};
  if (type.kind == 'u') return {"u" + bits, "b" + bits};
  return {type.kind + bits};
}

// NVIDIA's arithmetic makes one NaN of all.
inline float one_nan(float value) { return value != value ? std::bit_cast<float>(0x7FFF'FFFFu) : value; }
inline double one_nan(double value) { return value != value ? std::bit_cast<double>(0x7FF8'0000'0000'0000ull) : value; }

// Function{} of each lane's sources, cast to D.
template <class Function, class D, class... S, size_t... K>
void compute_lanes(Warp& warp, const Instruction& instruction, std::index_sequence<K...>) {
  const auto sources = std::make_tuple(warp.lanes<S>(instruction.source[K])...);
  D out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = static_cast<D>(Function{}(std::get<K>(sources)[l]...));
  warp.write<D>(instruction.destination, out);
}
template <class Function, class D, class... S>
void compute(Warp& warp, const Instruction& instruction) {
  compute_lanes<Function, D, S...>(warp, instruction, std::index_sequence_for<S...>{});
}

struct Alone {
  uint32_t operator()(uint32_t a, uint32_t) const { return a; }
};

template <class Function, class T, class Combine>
void compare(Warp& warp, const Instruction& instruction) {
  const T* a = warp.lanes<T>(instruction.source[0]);
  const T* b = warp.lanes<T>(instruction.source[1]);
  uint32_t result = 0;
  for (int l = 0; l < kLanes; ++l) result |= static_cast<uint32_t>(Function{}(a[l], b[l])) << l;
  uint32_t other = 0;
  if constexpr (!std::is_same_v<Combine, Alone>) {
    other = warp.predicate(instruction.source[2]);
    if (instruction.negated[2]) other = ~other;
  }
  warp.write_predicate(instruction.destination, Combine{}(result, other));
  if (instruction.second != 0) warp.write_predicate(instruction.second, Combine{}(~result, other));
}

template <class T>
void select(Warp& warp, const Instruction& instruction) {
  const T* a = warp.lanes<T>(instruction.source[0]);
  const T* b = warp.lanes<T>(instruction.source[1]);
  uint32_t which = warp.predicate(instruction.source[2]);
  if (instruction.negated[2]) which = ~which;
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = which >> l & 1 ? a[l] : b[l];
  warp.write<T>(instruction.destination, out);
}

template <class Function>
void logic(Warp& warp, const Instruction& instruction) {
  uint32_t a = warp.predicate(instruction.source[0]), b = warp.predicate(instruction.source[1]);
  if (instruction.negated[0]) a = ~a;
  if (instruction.negated[1]) b = ~b;
  warp.write_predicate(instruction.destination, Function{}(a, b));
}

// Sums with the carry of each lane: Function{}(a, b, c, carry) as wide as it needs; its upper half is the next carry.
template <class Function, class T, bool kSetsCarry, class... S, size_t... K>
void carry_lanes(Warp& warp, const Instruction& instruction, std::index_sequence<K...>) {
  const auto sources = std::make_tuple(warp.lanes<S>(instruction.source[K])...);
  T out[kLanes];
  uint32_t carry = 0;
  for (int l = 0; l < kLanes; ++l) {
    const u128 sum = Function{}(std::get<K>(sources)[l]..., static_cast<T>(warp.carry >> l & 1));
    out[l] = static_cast<T>(sum);
    carry |= static_cast<uint32_t>(sum >> (8 * sizeof(T)) & 1) << l;
  }
  warp.write<T>(instruction.destination, out);
  if (kSetsCarry) warp.carry = (warp.carry & ~warp.mask) | (carry & warp.mask);
}
template <class Function, class T, bool kSetsCarry, class... S>
void with_carry(Warp& warp, const Instruction& instruction) {
  carry_lanes<Function, T, kSetsCarry, S...>(warp, instruction, std::index_sequence_for<S...>{});
}

template <class T>
T high_product(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, s128, u128>;
  return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
}
template <class T>
T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  }
  return static_cast<T>(a / b);
}
template <class T>
T remainder_of(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return 0;
  }
  return static_cast<T>(a % b);
}
template <class T>
T bits_taken(T a, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 0xFF;
  length &= 0xFF;
  const u32 end = std::min(position + length, kBits);
  if constexpr (std::is_signed_v<T>) {
    if (length == 0) return 0;
    if (position >= kBits) return a < 0 ? T(-1) : T(0);
    const u32 top = end - 1;
    const auto raised = static_cast<std::make_unsigned_t<T>>(a) << (kBits - 1 - top);
    return static_cast<T>(static_cast<T>(raised) >> (kBits - (top - position + 1)));
  } else {
    if (length == 0 || position >= kBits) return 0;
    const u32 count = end - position;
    const T shifted = a >> position;
    return count >= kBits ? shifted : shifted & ((T(1) << count) - 1);
  }
}
template <class T>
T bits_put(T a, T b, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 0xFF;
  length &= 0xFF;
  if (length == 0 || position >= kBits) return b;
  const u32 count = std::min(length, kBits - position);
  const T ones = (count >= kBits ? ~T(0) : (T(1) << count) - 1) << position;
  return (b & ~ones) | (a << position & ones);
}
inline u32 bytes_chosen(u32 a, u32 b, u32 choice) {
  const u64 both = static_cast<u64>(b) << 32 | a;
  u32 result = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 one = choice >> (4 * k);
    u32 byte = static_cast<u32>(both >> (8 * (one & 7))) & 0xFF;
    if (one & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << (8 * k);
  }
  return result;
}
inline u32 looked_up(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (u32 k = 0; k < 8; ++k) {
    if (table >> k & 1) result |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return result;
}

template <class T>
T smaller(T a, T b) {
  if (a != a) return one_nan(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
T larger(T a, T b) {
  return -smaller(-a, -b);
}

// To an integer, as PTX has it: the nearest that there is, and for a NaN 0, or the highest bit where 64 bits take part.
template <class To, class From>
To to_integer(From value) {
  if (value != value) return sizeof(From) == 8 || sizeof(To) == 8 ? static_cast<To>(u64{1} << (8 * sizeof(To) - 1)) : 0;
  using Limits = std::numeric_limits<To>;
  if (value >= static_cast<From>(Limits::max())) return Limits::max();
  if (value <= static_cast<From>(Limits::min())) return Limits::min();
  return static_cast<To>(value);
}

class Table {
 public:
  Table() {
    integers();
    comparisons();
    carries();
    floats();
    conversions();
    movement();
    warp_wide();
  }

  const Operation* find(std::string_view opcode) const {
    const auto found = operations_.find(std::string(opcode));
    return found == operations_.end() ? nullptr : &found->second;
  }

 private:
  template <class D, class... S, class Function>
  void put(const std::string& name, Function) {
    operations_[name] = {&compute<Function, D, S...>, {type_of<D>(), type_of<S>()...}};
  }
  // name.TYPE for each of Ts; the types of the operands follow from T.
  template <class... Ts, class Function>
  void unary(const std::string& name, Function function) {
    (for_names<Ts>([&](const std::string& type) { put<Ts, Ts>(name + "." + type, function); }), ...);
  }
  template <class... Ts, class Function>
  void binary(const std::string& name, Function function) {
    (for_names<Ts>([&](const std::string& type) { put<Ts, Ts, Ts>(name + "." + type, function); }), ...);
  }
  template <class... Ts, class Function>
  void ternary(const std::string& name, Function function) {
    (for_names<Ts>([&](const std::string& type) { put<Ts, Ts, Ts, Ts>(name + "." + type, function); }), ...);
  }
  template <class T, class Body>
  void for_names(Body&& body) {
    for (const std::string& name : names_of<T>()) body(name);
  }

  template <class T, class Wide>
  void widening(const std::string& type) {
    put<Wide, T, T>("mul.wide." + type, [](T a, T b) { return static_cast<Wide>(a) * static_cast<Wide>(b); });
    put<Wide, T, T, Wide>("mad.wide." + type, [](T a, T b, Wide c) {
      using U = std::make_unsigned_t<Wide>;
      return static_cast<U>(static_cast<Wide>(a) * static_cast<Wide>(b)) + static_cast<U>(c);
    });
  }
  template <class T>
  void shifts() {
    constexpr u32 kBits = 8 * sizeof(T);
    const auto right = [](T a, u32 by) -> T {
      return by < kBits ? a >> by : std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
    };
    const auto left = [](T a, u32 by) -> T { return by < kBits ? a << by : 0; };
    for (const std::string& type : names_of<T>()) {
      put<T, T, u32>("shr." + type, right);
      if (std::is_unsigned_v<T>) put<T, T, u32>("shl." + type, left);
    }
  }
  template <class T>
  void bit_fields(const std::string& type) {
    put<T, T, u32, u32>("bfe." + type, [](T a, u32 position, u32 length) { return bits_taken(a, position, length); });
    if (std::is_unsigned_v<T>) {
      put<T, T, T, u32, u32>("bfi.b" + type.substr(1),
                             [](T a, T b, u32 position, u32 length) { return bits_put(a, b, position, length); });
      put<u32, T>("clz.b" + type.substr(1), [](T a) { return std::countl_zero(std::make_unsigned_t<T>(a)); });
      put<u32, T>("popc.b" + type.substr(1), [](T a) { return std::popcount(std::make_unsigned_t<T>(a)); });
    }
  }

  void integers() {
    // Signed sums are made as unsigned ones, which have the same bits and may overflow.
    const auto any = [&](const std::string& name, auto function) { binary<u16, u32, u64>(name, function); };
    any("add", [](auto a, auto b) { return a + b; });
    any("sub", [](auto a, auto b) { return a - b; });
    any("mul.lo", [](auto a, auto b) { return static_cast<u64>(a) * b; });
    ternary<u16, u32, u64>("mad.lo", [](auto a, auto b, auto c) { return static_cast<u64>(a) * b + c; });
    unary<u16, u32, u64>("neg", [](auto a) { return 0 - a; });
    for (const char* name : {"add", "sub", "mul.lo", "mad.lo", "neg"}) {
      for (const char* bits : {"16", "32", "64"}) {
        operations_[std::string(name) + ".s" + bits] = operations_.at(std::string(name) + ".u" + bits);
      }
    }
    any("and", [](auto a, auto b) { return a & b; });
    any("or", [](auto a, auto b) { return a | b; });
    any("xor", [](auto a, auto b) { return a ^ b; });
    unary<u16, u32, u64>("not", [](auto a) { return ~a; });
    unary<u16, u32, u64>("cnot", [](auto a) { return a == 0 ? 1 : 0; });
    binary<u16, s16, u32, s32, u64, s64>("mul.hi", [](auto a, auto b) { return high_product(a, b); });
    ternary<u32, s32, u64, s64>("mad.hi", [](auto a, auto b, auto c) {
      using U = std::make_unsigned_t<decltype(a)>;
      return static_cast<U>(high_product(a, b)) + static_cast<U>(c);
    });
    binary<u16, s16, u32, s32, u64, s64>("div", [](auto a, auto b) { return quotient(a, b); });
    binary<u16, s16, u32, s32, u64, s64>("rem", [](auto a, auto b) { return remainder_of(a, b); });
    binary<u16, s16, u32, s32, u64, s64>("min", [](auto a, auto b) { return a < b ? a : b; });
    binary<u16, s16, u32, s32, u64, s64>("max", [](auto a, auto b) { return a > b ? a : b; });
    unary<s16, s32, s64>("abs", [](auto a) {
      using U = std::make_unsigned_t<decltype(a)>;
      return a < 0 ? U(0) - static_cast<U>(a) : static_cast<U>(a);
    });
    widening<u16, u32>("u16"), widening<s16, s32>("s16"), widening<u32, u64>("u32"), widening<s32, s64>("s32");
    shifts<u16>(), shifts<s16>(), shifts<u32>(), shifts<s32>(), shifts<u64>(), shifts<s64>();
    bit_fields<u32>("u32"), bit_fields<s32>("s32"), bit_fields<u64>("u64"), bit_fields<s64>("s64");
    put<u32, u32>("brev.b32", [](u32 a) {
      u32 result = 0;
      for (int k = 0; k < 32; ++k) result |= (a >> k & 1) << (31 - k);
      return result;
    });
    put<u32, u32, u32, u32>("shf.l.wrap.b32", [](u32 a, u32 b, u32 by) {
      return static_cast<u32>((static_cast<u64>(b) << 32 | a) << (by & 31) >> 32);
    });
    put<u32, u32, u32, u32>("shf.r.wrap.b32", [](u32 a, u32 b, u32 by) {
      return static_cast<u32>((static_cast<u64>(b) << 32 | a) >> (by & 31));
    });
    put<u32, u32, u32, u32>("shf.l.clamp.b32", [](u32 a, u32 b, u32 by) {
      return static_cast<u32>((static_cast<u128>(b) << 32 | a) << std::min(by, 32u) >> 32);
    });
    put<u32, u32, u32, u32>("shf.r.clamp.b32", [](u32 a, u32 b, u32 by) {
      return static_cast<u32>((static_cast<u64>(b) << 32 | a) >> std::min(by, 32u));
    });
    put<u32, u32, u32, u32>("prmt.b32", [](u32 a, u32 b, u32 choice) { return bytes_chosen(a, b, choice); });
    put<u32, u32, u32, u32, u32>("lop3.b32", [](u32 a, u32 b, u32 c, u32 table) { return looked_up(a, b, c, table); });
  }

  template <class Combine>
  void comparisons_with(const std::string& combine) {
    const auto put_all = [&]<class... Ts>(const std::string& name, auto function, std::type_identity<Ts>...) {
      (for_names<Ts>([&](const std::string& type) {
         std::vector<Type> types{type_of<Predicate>(), type_of<Ts>(), type_of<Ts>()};
         if (!combine.empty()) types.push_back(type_of<Predicate>());
         operations_["setp." + name + combine + "." + type] = {&compare<decltype(function), Ts, Combine>, types};
       }),
       ...);
    };
    const auto all = [&](const std::string& name, auto function) {
      put_all(name, function, std::type_identity<u16>{}, std::type_identity<s16>{}, std::type_identity<u32>{},
              std::type_identity<s32>{}, std::type_identity<u64>{}, std::type_identity<s64>{});
      if (name != "ne") put_all(name, function, std::type_identity<float>{}, std::type_identity<double>{});
    };
    const auto of_floats = [&](const std::string& name, auto function) {
      put_all(name, function, std::type_identity<float>{}, std::type_identity<double>{});
    };
    const auto of_unsigned = [&](const std::string& name, auto function) {
      put_all(name, function, std::type_identity<u16>{}, std::type_identity<u32>{}, std::type_identity<u64>{});
    };
    all("eq", [](auto a, auto b) { return a == b; });
    all("ne", [](auto a, auto b) { return a != b; });
    all("lt", [](auto a, auto b) { return a < b; });
    all("le", [](auto a, auto b) { return a <= b; });
    all("gt", [](auto a, auto b) { return a > b; });
    all("ge", [](auto a, auto b) { return a >= b; });
    of_unsigned("lo", [](auto a, auto b) { return a < b; });
    of_unsigned("ls", [](auto a, auto b) { return a <= b; });
    of_unsigned("hi", [](auto a, auto b) { return a > b; });
    of_unsigned("hs", [](auto a, auto b) { return a >= b; });
    of_floats("ne", [](auto a, auto b) { return a < b || a > b; });
    of_floats("equ", [](auto a, auto b) { return !(a < b || a > b); });
    of_floats("neu", [](auto a, auto b) { return a != b; });
    of_floats("ltu", [](auto a, auto b) { return !(a >= b); });
    of_floats("leu", [](auto a, auto b) { return !(a > b); });
    of_floats("gtu", [](auto a, auto b) { return !(a <= b); });
    of_floats("geu", [](auto a, auto b) { return !(a < b); });
    of_floats("num", [](auto a, auto b) { return a == a && b == b; });
    of_floats("nan", [](auto a, auto b) { return a != a || b != b; });
  }

  void comparisons() {
    comparisons_with<Alone>("");
    comparisons_with<std::bit_and<>>(".and");
    comparisons_with<std::bit_or<>>(".or");
    comparisons_with<std::bit_xor<>>(".xor");
  }

  template <class T>
  void carries_of(const std::string& bits) {
    const std::vector<Type> two(3, type_of<T>()), three(4, type_of<T>());
    const auto put_carry = [&]<class F>(const std::string& name, F, const std::vector<Type>& types, auto run) {
      for (const char* sign : {".u", ".s"}) operations_[name + sign + bits] = {run, types};
    };
    const auto add = [](T a, T b, T) { return static_cast<u128>(a) + b; };
    const auto addc = [](T a, T b, T carry) { return static_cast<u128>(a) + b + carry; };
    // A borrow is kept as PTX keeps it: set where a is less than what is taken off.
    const auto sub = [](T a, T b, T) { return static_cast<u128>(a) - b; };
    const auto subc = [](T a, T b, T borrow) { return static_cast<u128>(a) - b - borrow; };
    const auto mad_low = [](T a, T b, T c, T) { return static_cast<u128>(static_cast<T>(a * b)) + c; };
    const auto madc_low = [](T a, T b, T c, T carry) { return static_cast<u128>(static_cast<T>(a * b)) + c + carry; };
    const auto mad_high = [](T a, T b, T c, T) { return static_cast<u128>(high_product(a, b)) + c; };
    const auto madc_high = [](T a, T b, T c, T carry) { return static_cast<u128>(high_product(a, b)) + c + carry; };
    put_carry("add.cc", add, two, &with_carry<decltype(add), T, true, T, T>);
    put_carry("addc", addc, two, &with_carry<decltype(addc), T, false, T, T>);
    put_carry("addc.cc", addc, two, &with_carry<decltype(addc), T, true, T, T>);
    put_carry("sub.cc", sub, two, &with_carry<decltype(sub), T, true, T, T>);
    put_carry("subc", subc, two, &with_carry<decltype(subc), T, false, T, T>);
    put_carry("subc.cc", subc, two, &with_carry<decltype(subc), T, true, T, T>);
    put_carry("mad.lo.cc", mad_low, three, &with_carry<decltype(mad_low), T, true, T, T, T>);
    put_carry("madc.lo", madc_low, three, &with_carry<decltype(madc_low), T, false, T, T, T>);
    put_carry("madc.lo.cc", madc_low, three, &with_carry<decltype(madc_low), T, true, T, T, T>);
    put_carry("mad.hi.cc", mad_high, three, &with_carry<decltype(mad_high), T, true, T, T, T>);
    put_carry("madc.hi", madc_high, three, &with_carry<decltype(madc_high), T, false, T, T, T>);
    put_carry("madc.hi.cc", madc_high, three, &with_carry<decltype(madc_high), T, true, T, T, T>);
  }
  void carries() {
    carries_of<u32>("32");
    carries_of<u64>("64");
    // The upper half of a signed product differs from the unsigned one.
    for (const char* name : {"mad.hi.cc", "madc.hi", "madc.hi.cc"}) {
      for (const char* bits : {".s32", ".s64"}) operations_.erase(std::string(name) + bits);
    }
  }

  void floats() {
    // Only what names its rounding: an assembler may contract or approximate everything else.
    binary<float, double>("add.rn", [](auto a, auto b) { return one_nan(a + b); });
    binary<float, double>("sub.rn", [](auto a, auto b) { return one_nan(a - b); });
    binary<float, double>("mul.rn", [](auto a, auto b) { return one_nan(a * b); });
    binary<float, double>("div.rn", [](auto a, auto b) { return one_nan(a / b); });
    ternary<float, double>("fma.rn", [](auto a, auto b, auto c) { return one_nan(std::fma(a, b, c)); });
    unary<float, double>("sqrt.rn", [](auto a) { return one_nan(std::sqrt(a)); });
    unary<float, double>("rcp.rn", [](auto a) { return one_nan(1 / a); });
    // The one approximation, of a relative error up to 2^-22.9: up to two units off, so that nobody's bits rest on a
    // card's.
    put<float, float>("rsqrt.approx.ftz.f32", [](float a) {
      const float nearest = static_cast<float>(1 / std::sqrt(static_cast<double>(a)));
      const uint32_t bits = std::bit_cast<uint32_t>(a);
      const int off = static_cast<int>((bits * 0x9E3779B9u) >> 16) % 5 - 2;
      return std::isnormal(nearest) ? std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) + off) : nearest;
    });
    unary<float, double>("neg", [](auto a) { return -a; });
    unary<float, double>("abs", [](auto a) { return std::fabs(a); });
    binary<float, double>("min", [](auto a, auto b) { return smaller(a, b); });
    binary<float, double>("max", [](auto a, auto b) { return larger(a, b); });
    // The sign of a, the rest of b.
    binary<float, double>("copysign", [](auto a, auto b) { return std::copysign(b, a); });
  }

  template <class To, class... From>
  void integer_conversions() {
    const auto cast = [](auto a) { return static_cast<To>(a); };
    (for_names<To>([&](const std::string& to) {
       for_names<From>([&](const std::string& from) { put<To, From>("cvt." + to + "." + from, cast); });
     }),
     ...);
  }
  template <class Float, class... Ints>
  void float_conversions(const std::string& name) {
    const auto to_float = [](auto a) { return static_cast<Float>(a); };
    (for_names<Ints>([&](const std::string& type) {
       put<Float, Ints>("cvt.rn." + name + "." + type, to_float);
       put<Ints, Float>("cvt.rni." + type + "." + name, [](Float a) { return to_integer<Ints>(std::nearbyint(a)); });
       put<Ints, Float>("cvt.rzi." + type + "." + name, [](Float a) { return to_integer<Ints>(std::trunc(a)); });
       put<Ints, Float>("cvt.rmi." + type + "." + name, [](Float a) { return to_integer<Ints>(std::floor(a)); });
       put<Ints, Float>("cvt.rpi." + type + "." + name, [](Float a) { return to_integer<Ints>(std::ceil(a)); });
     }),
     ...);
    const std::string same = "." + name + "." + name;
    put<Float, Float>("cvt.rni" + same, [](Float a) { return one_nan(std::nearbyint(a)); });
    put<Float, Float>("cvt.rzi" + same, [](Float a) { return one_nan(std::trunc(a)); });
    put<Float, Float>("cvt.rmi" + same, [](Float a) { return one_nan(std::floor(a)); });
    put<Float, Float>("cvt.rpi" + same, [](Float a) { return one_nan(std::ceil(a)); });
  }
  void conversions() {
    integer_conversions<u8, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<s8, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<u16, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<s16, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<u32, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<s32, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<u64, u8, s8, u16, s16, u32, s32, u64, s64>();
    integer_conversions<s64, u8, s8, u16, s16, u32, s32, u64, s64>();
    float_conversions<float, u8, s8, u16, s16, u32, s32, u64, s64>("f32");
    float_conversions<double, u8, s8, u16, s16, u32, s32, u64, s64>("f64");
    put<float, double>("cvt.rn.f32.f64", [](double a) { return one_nan(static_cast<float>(a)); });
    put<double, float>("cvt.f64.f32", [](float a) { return one_nan(static_cast<double>(a)); });
    put<float, Float16>("cvt.f32.f16", [](Float16 a) { return widened(a); });
    put<float, BFloat16>("cvt.f32.bf16", [](BFloat16 a) { return widened(a); });
    put<double, Float16>("cvt.f64.f16", [](Float16 a) { return static_cast<double>(widened(a)); });
    put<Float16, float>("cvt.rn.f16.f32", [](float a) { return to_float16(a); });
    put<BFloat16, float>("cvt.rn.bf16.f32", [](float a) { return to_bfloat16(a); });
    // The first operand becomes the upper half.
    put<u32, float, float>("cvt.rn.f16x2.f32", [](float a, float b) {
      return static_cast<u32>(to_float16(a).bits) << 16 | to_float16(b).bits;
    });
    put<u32, float, float>("cvt.rn.bf16x2.f32", [](float a, float b) {
      return static_cast<u32>(to_bfloat16(a).bits) << 16 | to_bfloat16(b).bits;
    });
  }

  template <class... Ts>
  void movement_of() {
    (for_names<Ts>([&](const std::string& type) {
       put<Ts, Ts>("mov." + type, [](Ts a) { return a; });
       operations_["selp." + type] = {&select<Ts>, {type_of<Ts>(), type_of<Ts>(), type_of<Ts>(), type_of<Predicate>()}};
     }),
     ...);
  }
  template <class Function>
  void put_logic(const std::string& name, Function, size_t sources) {
    operations_[name] = {&logic<Function>, std::vector<Type>(1 + sources, type_of<Predicate>())};
  }
  void movement() {
    movement_of<u16, s16, u32, s32, u64, s64, float, double>();
    put_logic("mov.pred", [](uint32_t a, uint32_t) { return a; }, 1);
    put_logic("not.pred", [](uint32_t a, uint32_t) { return ~a; }, 1);
    put_logic("and.pred", [](uint32_t a, uint32_t b) { return a & b; }, 2);
    put_logic("or.pred", [](uint32_t a, uint32_t b) { return a | b; }, 2);
    put_logic("xor.pred", [](uint32_t a, uint32_t b) { return a ^ b; }, 2);
    // Between address spaces, an offset in a window and an address that names its window.
    for (const char* type : {".u64", ".s64", ".b64"}) {
      put<u64, u64>(std::string("cvta.global") + type, [](u64 a) { return a; });
      put<u64, u64>(std::string("cvta.to.global") + type, [](u64 a) { return a; });
      put<u64, u64>(std::string("cvta.const") + type, [](u64 a) { return a; });
      put<u64, u64>(std::string("cvta.shared") + type, [](u64 a) { return a + kSharedWindow; });
      put<u64, u64>(std::string("cvta.to.shared") + type, [](u64 a) { return a - kSharedWindow; });
      put<u64, u64>(std::string("cvta.local") + type, [](u64 a) { return a + kLocalWindow; });
      put<u64, u64>(std::string("cvta.to.local") + type, [](u64 a) { return a - kLocalWindow; });
      put<u64, u64>(std::string("cvta.param") + type, [](u64 a) { return a + kParameterWindow; });
      put<u64, u64>(std::string("cvta.to.param") + type, [](u64 a) { return a - kParameterWindow; });
    }
  }

  // Operations that lanes do together; the last operand says which.
  template <class Function>
  void put_vote(const std::string& name, Function, const Type& result) {
    const auto run = [](Warp& warp, const Instruction& instruction) {
      uint32_t votes = warp.predicate(instruction.source[0]);
      if (instruction.negated[0]) votes = ~votes;
      Function{}(warp, instruction, votes & warp.mask);
    };
    operations_[name] = {run, {result, type_of<Predicate>(), type_of<u32>()}, Flow::kTogether};
  }
  template <class Function>
  void put_shuffle(const std::string& name, Function) {
    const auto run = [](Warp& warp, const Instruction& instruction) {
      const u32* a = warp.lanes<u32>(instruction.source[0]);
      const u32* b = warp.lanes<u32>(instruction.source[1]);
      const u32* c = warp.lanes<u32>(instruction.source[2]);
      u32 out[kLanes] = {};
      uint32_t in_range = 0;
      for (int l = 0; l < kLanes; ++l) {
        if (!(warp.mask >> l & 1)) continue;
        const int segment = static_cast<int>(c[l] >> 8 & 31);
        const int limit = (l & segment) | (static_cast<int>(c[l] & 31) & ~segment);
        const auto [lane, inside] = Function{}(l, static_cast<int>(b[l] & 31), segment, limit);
        const int from = inside ? lane : l;
        if (!(warp.mask >> from & 1)) throw Fault("reads a lane that takes no part");
        out[l] = a[from];
        in_range |= static_cast<uint32_t>(inside) << l;
      }
      warp.write<u32>(instruction.destination, out);
      if (instruction.second != 0) warp.write_predicate(instruction.second, in_range);
    };
    const Type word = type_of<u32>();
    operations_["shfl.sync." + name + ".b32"] = {run, {word, word, word, word, word}, Flow::kTogether};
  }
  template <class T, class Function>
  void put_reduction(const std::string& name, Function) {
    const auto run = [](Warp& warp, const Instruction& instruction) {
      const T* a = warp.lanes<T>(instruction.source[0]);
      T total = a[std::countr_zero(warp.mask)], out[kLanes];
      for (int l = std::countr_zero(warp.mask) + 1; l < kLanes; ++l) {
        if (warp.mask >> l & 1) total = static_cast<T>(Function{}(total, a[l]));
      }
      std::fill_n(out, kLanes, total);
      warp.write<T>(instruction.destination, out);
    };
    operations_["redux.sync." + name] = {run, {type_of<T>(), type_of<T>(), type_of<u32>()}, Flow::kTogether};
  }
  void warp_wide() {
    const auto ballot = [](Warp& warp, const Instruction& instruction, uint32_t votes) {
      u32 out[kLanes];
      std::fill_n(out, kLanes, votes);
      warp.write<u32>(instruction.destination, out);
    };
    const auto any = [](Warp& warp, const Instruction& instruction, uint32_t votes) {
      warp.write_predicate(instruction.destination, votes != 0 ? kAllLanes : 0);
    };
    const auto all = [](Warp& warp, const Instruction& instruction, uint32_t votes) {
      warp.write_predicate(instruction.destination, votes == warp.mask ? kAllLanes : 0);
    };
    const auto uniform = [](Warp& warp, const Instruction& instruction, uint32_t votes) {
      warp.write_predicate(instruction.destination, votes == warp.mask || votes == 0 ? kAllLanes : 0);
    };
    put_vote("vote.sync.ballot.b32", ballot, type_of<u32>());
    put_vote("vote.sync.any.pred", any, type_of<Predicate>());
    put_vote("vote.sync.all.pred", all, type_of<Predicate>());
    put_vote("vote.sync.uni.pred", uniform, type_of<Predicate>());
    put_shuffle("up", [](int l, int by, int, int limit) { return std::pair(l - by, l - by >= limit); });
    put_shuffle("down", [](int l, int by, int, int limit) { return std::pair(l + by, l + by <= limit); });
    put_shuffle("bfly", [](int l, int by, int, int limit) { return std::pair(l ^ by, (l ^ by) <= limit); });
    put_shuffle("idx", [](int l, int by, int segment, int limit) {
      const int lane = (l & segment) | (by & ~segment);
      return std::pair(lane, lane <= limit);
    });
    put_reduction<u32>("add.u32", std::plus<>{});
    put_reduction<u32>("add.s32", std::plus<>{});
    put_reduction<u32>("and.b32", std::bit_and<>{});
    put_reduction<u32>("or.b32", std::bit_or<>{});
    put_reduction<u32>("xor.b32", std::bit_xor<>{});
    put_reduction<u32>("min.u32", [](u32 a, u32 b) { return std::min(a, b); });
    put_reduction<u32>("max.u32", [](u32 a, u32 b) { return std::max(a, b); });
    put_reduction<s32>("min.s32", [](s32 a, s32 b) { return std::min(a, b); });
    put_reduction<s32>("max.s32", [](s32 a, s32 b) { return std::max(a, b); });
    const auto wait = [](Warp& warp, const Instruction&) { ++warp.warp_epoch; };
    operations_["bar.warp.sync"] = {wait, {type_of<u32>()}, Flow::kTogether};
  }

  std::unordered_map<std::string, Operation> operations_;
};

template <class Wide, class Narrow>
void pack(Warp& warp, const Instruction& instruction) {
  Wide out[kLanes] = {};
  for (size_t k = 0; k < sizeof(Wide) / sizeof(Narrow); ++k) {
    const Narrow* from = warp.lanes<Narrow>(instruction.vector[k]);
    for (int l = 0; l < kLanes; ++l) out[l] |= static_cast<Wide>(from[l]) << (8 * sizeof(Narrow) * k);
  }
  warp.write<Wide>(instruction.destination, out);
}
template <class Wide, class Narrow>
void unpack(Warp& warp, const Instruction& instruction) {
  Wide from[kLanes];
  std::copy_n(warp.lanes<Wide>(instruction.source[0]), kLanes, from);
  for (size_t k = 0; k < sizeof(Wide) / sizeof(Narrow); ++k) {
    Narrow out[kLanes];
    for (int l = 0; l < kLanes; ++l) out[l] = static_cast<Narrow>(from[l] >> (8 * sizeof(Narrow) * k));
    warp.write<Narrow>(instruction.vector[k], out);
  }
}

template <class To, class From>
void resize(Warp& warp, const Instruction& instruction) {
  const From* from = warp.lanes<From>(instruction.source[0]);
  To out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = static_cast<To>(from[l]);
  warp.write<To>(instruction.destination, out);
}
template <class To>
Run resize_to(int from, bool with_sign) {
  switch (from) {
    case 1:
      return with_sign ? &resize<To, s8> : &resize<To, u8>;
    case 2:
      return with_sign ? &resize<To, s16> : &resize<To, u16>;
    case 4:
      return with_sign ? &resize<To, s32> : &resize<To, u32>;
    default:
      return &resize<To, u64>;
  }
}

}  // namespace

const Operation* find_operation(std::string_view opcode) {
  static const Table table;
  return table.find(opcode);
}

Run pack_operation(int bytes, int count) {
  if (bytes == 4 && count == 2) return &pack<u64, u32>;
  if (bytes == 2 && count == 4) return &pack<u64, u16>;
  if (bytes == 2 && count == 2) return &pack<u32, u16>;
  return nullptr;
}

Run unpack_operation(int bytes, int count) {
  if (bytes == 4 && count == 2) return &unpack<u64, u32>;
  if (bytes == 2 && count == 4) return &unpack<u64, u16>;
  if (bytes == 2 && count == 2) return &unpack<u32, u16>;
  return nullptr;
}

Run resize_operation(int to, int from, bool with_sign) {
  switch (to) {
    case 1:
      return resize_to<u8>(from, with_sign);
    case 2:
      return resize_to<u16>(from, with_sign);
    case 4:
      return resize_to<u32>(from, with_sign);
    default:
      return resize_to<u64>(from, with_sign);
  }
}

std::string reason_to_refuse(std::string_view opcode) {
  const auto has = [&](std::string_view part) { return opcode.find(part) != std::string_view::npos; };
  const bool floating = has(".f32") || has(".f64") || has(".f16") || has(".bf16");
  if (floating && (has(".approx") || has(".full"))) return "is approximate: its bits may differ from card to card";
  if (floating && has(".ftz")) return "flushes subnormal numbers, which the CPU does not";
  const bool sum = opcode.starts_with("add.") || opcode.starts_with("sub.") || opcode.starts_with("mul.");
  if (floating && sum && !has(".rn") && !has(".rz") && !has(".rm") && !has(".rp")) {
    return "names no rounding, so the assembler may contract it; compile with --fmad=false";
  }
  return "is not known to the simulator";
}

}  // namespace pyfold::gpu

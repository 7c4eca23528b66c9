#pragma once

#include <initializer_list>
#include <span>

#include "diffusion/program.h"
#include "ops/op.h"

namespace pyfold::ops {

// Reads the operands of an op in their order, the options in one run and the tensors in another; what is read in the
// first must lie in the call. Where something is wrong, all that follows does nothing.
class Parser {
 public:
  enum class Run { kDescribe, kOptions, kTensors };
  Parser(Run run, Source& source, Call& call) : run_(run), source_(&source), call_(call) {}
  Parser(Op& described, Call& call) : run_(Run::kDescribe), described_(&described), call_(call) {}

  bool options() const { return run_ == Run::kOptions && call_.error.code == nullptr; }
  // Whether tensors are read, and nothing is wrong.
  bool ok() const { return run_ == Run::kTensors && call_.error.code == nullptr; }
  void fail(const char* code, const char* operand, int item = -1, const char* text = "") {
    if (ok() || options()) call_.error = {code, operand, item, text};
  }

  // --- one operand each. False where there is nothing to go on with.
  bool tensor(const char* name, Kind kind, unsigned flags, TensorRef& out) {
    Source::Found found;
    return next(name, kind, flags) && take(name, -1, kind, flags, out, found);
  }
  void integer(const char* name, int64_t& out, int64_t low = INT64_MIN, int64_t high = INT64_MAX);
  void counter(const char* name, uint32_t& out);
  void number(const char* name, double& out);
  void boolean(const char* name, bool& out);
  template <class Choice>  // a number from 0
  void choice(const char* name, std::span<const std::string_view> allowed, Choice& out) {
    int found = static_cast<int>(out);
    choose(name, allowed, found);
    out = static_cast<Choice>(found);
  }
  template <class Number>  // the count
  int64_t list(const char* name, Number* out, int64_t limit) {
    if (!next(name, std::is_same_v<Number, double> ? Kind::kFloats : Kind::kInts, 0)) return 0;
    const int64_t count = source_->list(next_ - 1, out, limit);
    if (count < 0) fail(Wrong::kType, name);
    return std::max<int64_t>(count, 0);
  }

  // --- of ops on samples: tensors [B, ...] shaped like the first
  void samples(Geometry& geometry) { geometry_ = &geometry; }
  void view(const char* name, View& view, Kind kind = Kind::kState, unsigned flags = 0);
  void views(const char* name, View* views, int least, int most, Kind kind);
  void table(Table& table, int64_t columns);  // table, index
  // seeds, streams, positions, stream, step, offset, global_shape
  void noise(NoiseSource& noise, unsigned flags = 0);
  // One value, or one for each sample; stride null: one for each. Whether there is one.
  template <class Value>
  bool per_sample(const char* name, Kind kind, unsigned flags, const Value*& data, int64_t* stride) {
    TensorRef given;
    if (!tensor(name, kind, flags, given)) return false;
    const int64_t count = given.numel();
    const bool each = count == geometry_->rows && (given.ndim == 1 || stride != nullptr);
    if (given.ndim > 1 || !(each || (stride != nullptr && count == 1))) return fail(Wrong::kShape, name), false;
    data = static_cast<const Value*>(given.data);
    if (stride != nullptr) *stride = count == 1 ? 0 : 1;
    return true;
  }
  void finish_samples(Window& window, bool in_order = true);  // in_order: noise or a sum counts elements

  // --- results. shape names what Python's shape rules know it by.
  void result(const char* shape, Element type, void** slot, std::initializer_list<int64_t> sizes);
  Result* result_like(const char* shape, const TensorRef& like, void** slot, int operand = 0);  // that operand
  void result_view(const char* shape, View& view, int operand);  // like the operand read as the last view

  Element state() const { return state_; }
  Element accumulation() const { return state_ == Element::kFloat64 ? Element::kFloat64 : Element::kFloat32; }

 private:
  bool next(const char* name, Kind kind, unsigned flags);
  void choose(const char* name, std::span<const std::string_view> allowed, int& out);
  bool take(const char* name, int item, Kind kind, unsigned flags, TensorRef& out, Source::Found& found);
  void place(View& view, const char* name, int item, const TensorRef& given, unsigned flags);
  int64_t window_part(const char* name, Call::Integers& out);
  void window(Window& window);
  bool type_fits(Kind kind, const TensorRef& given);

  struct Memory {
    TensorRef tensor;
    const char* name;
    int item;
    bool written;
  };
  void check_overlaps();

  bool next_result(const char* shape);
  Result& make(Element type, void** slot, int ndim, const int64_t* sizes);
  Result& make_like(const TensorRef& like, int operand, Element type, void** slot);
  Run run_;
  Source* source_ = nullptr;
  Op* described_ = nullptr;
  Call& call_;
  int next_ = 0;
  Element state_ = Element::kOther;
  bool has_first_ = false;
  TensorRef first_, last_view_;
  Geometry* geometry_ = nullptr;
  bool flat_ = true;
  bool writes_ = false;
  int view_count_ = 0, memory_count_ = 0;
  View* views_[16];
  Memory memory_[24];
};

}  // namespace pyfold::ops

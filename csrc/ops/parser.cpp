#include "ops/parser.h"

#include <algorithm>

namespace pyfold::ops {

void Result::in_order_of(const TensorRef& like) {
  int order[kMostDims];
  const int count = by_stride({nullptr, type, 0, 0, ndim, sizes, like.strides}, order);
  std::copy(like.strides, like.strides + ndim, strides);
  int64_t stride = 1;
  for (int i = 0; i < count; ++i) {
    strides[order[i]] = stride;
    stride *= sizes[order[i]];
  }
}

const std::vector<Op>& all() {
  // Never freed: a thread may still be in a call when the process ends.
  static const auto* const ops = [] {
    auto* every = new std::vector<Op>(diffusion_ops());
    for (const Op& op : fold_ops()) every->push_back(op);
    for (Op& op : *every) {
      Call call;
      Parser parser(op, call);
      op.read(parser, call);
    }
    return every;
  }();
  return *ops;
}

std::string Op::schema() const {
  constexpr const char* types[] = {"int", "float", "bool", "int[]", "float[]", "str"};  // from Kind::kInt on
  std::string text = std::string(name) + "(";
  char alias = 'a';
  for (const Operand& operand : operands) {
    if (&operand != operands.data()) text += ", ";
    if (operand.kind >= Kind::kInt) {
      text += types[static_cast<int>(operand.kind) - static_cast<int>(Kind::kInt)];
    } else {
      text += "Tensor";
      if (operand.flags & kWritten) text += std::string("(") + alias++ + "!)";
      if (operand.flags & kList) text += "[]";
      if (operand.flags & kOptional) text += "?";
    }
    text += std::string(" ") + operand.name;
  }
  text += ") -> ";
  if (results.size() != 1) text += "(";
  for (size_t i = 0; i < results.size(); ++i) text += i == 0 ? "Tensor" : ", Tensor";
  return results.size() != 1 ? text + ")" : text;
}

ReadCounts& read_counts() {
  static ReadCounts counts;
  return counts;
}

static bool read(Parser::Run run, std::atomic<int64_t>& count, const Op& op, Source& source, Call& call) {
  count.fetch_add(1, std::memory_order_relaxed);
  Parser parser(run, source, call);
  op.read(parser, call);
  return call.error.code == nullptr;
}
bool read_options(const Op& op, Source& source, Call& call) {
  return read(Parser::Run::kOptions, read_counts().options, op, source, call);
}
bool read_tensors(const Op& op, Source& source, Call& call) {
  return read(Parser::Run::kTensors, read_counts().tensors, op, source, call);
}

CudaLaunch& cuda_launch() {
  static CudaLaunch shared;
  return shared;
}

// --- operands

bool Parser::next(const char* name, Kind kind, unsigned flags) {
  if (described_ != nullptr) described_->operands.push_back({name, kind, flags});
  ++next_;
  return kind >= Kind::kInt ? options() : ok();
}

bool Parser::type_fits(Kind kind, const TensorRef& given) {
  switch (kind) {
    case Kind::kState:
      if (state_ == Element::kOther && given.floating()) state_ = given.type;
      return given.floating() && given.type == state_;
    case Kind::kLower:
      return given.type == state_ ||
             (state_ == Element::kFloat32 && given.floating() && given.type != Element::kFloat64);
    case Kind::kAccumulation:
      return given.type == accumulation();
    case Kind::kTable:
      return given.type == Element::kFloat64;
    case Kind::kIntegers:
      return given.type == Element::kInt64;
    case Kind::kSeeds:
      return given.type == Element::kInt64 || given.type == Element::kUInt64;
    case Kind::kBits:
      return given.type == Element::kUInt8;
    default:
      return false;
  }
}

// found: kMake where the output is to be made.
bool Parser::take(const char* name, int item, Kind kind, unsigned flags, TensorRef& out, Source::Found& found) {
  out.type = Element::kOther;
  found = source_->tensor(next_ - 1, item, out);
  const bool absent = found == Source::Found::kAbsent && !(flags & kOptional);
  if (absent || found == Source::Found::kNoTensor) fail(Wrong::kType, name, item);
  if (found == Source::Found::kUnreadable) fail(Wrong::kUnreadable, name, item);
  if (found != Source::Found::kGiven) return false;
  if (!type_fits(kind, out)) return fail(Wrong::kDtype, name, item), false;
  if (!has_first_) {
    has_first_ = true;
    first_ = out;
    call_.device_type = out.device_type;
    call_.device_index = out.device_index;
  } else if (out.device_type != call_.device_type || out.device_index != call_.device_index) {
    return fail(Wrong::kDevice, name, item), false;
  }
  if (kind >= Kind::kAccumulation && !out.contiguous()) return fail(Wrong::kLayout, name, item), false;
  const bool written = flags & kWritten;
  writes_ |= written;
  if (memory_count_ < 24) memory_[memory_count_++] = {out, name, item, written};
  return true;
}

void Parser::integer(const char* name, int64_t& out, int64_t low, int64_t high) {
  if (!next(name, Kind::kInt, 0)) return;
  if (!source_->integer(next_ - 1, out)) return fail(Wrong::kType, name);
  if (out < low || out > high) fail(Wrong::kRange, name);
}

void Parser::counter(const char* name, uint32_t& out) {
  int64_t value = out;
  integer(name, value, 0, UINT32_MAX);
  out = static_cast<uint32_t>(value);
}

void Parser::number(const char* name, double& out) {
  if (next(name, Kind::kFloat, 0) && !source_->number(next_ - 1, out)) fail(Wrong::kType, name);
}

void Parser::boolean(const char* name, bool& out) {
  if (next(name, Kind::kBool, 0) && !source_->boolean(next_ - 1, out)) fail(Wrong::kType, name);
}

void Parser::choose(const char* name, std::span<const std::string_view> allowed, int& out) {
  std::string_view given;
  if (!next(name, Kind::kText, 0)) return;
  if (!source_->text(next_ - 1, given)) return fail(Wrong::kType, name);
  const auto found = std::find(allowed.begin(), allowed.end(), given);
  if (found == allowed.end()) return fail(Wrong::kRange, name);
  out = static_cast<int>(found - allowed.begin());
}

// --- samples

void Parser::place(View& view, const char* name, int item, const TensorRef& given, unsigned flags) {
  if (view_count_ == 0) {
    if (given.ndim < 1 || given.ndim > kMaxDims + 1) return fail(Wrong::kBatch, name, item);
    Geometry& geometry = *geometry_;
    geometry.rows = given.sizes[0];
    geometry.ndim = given.ndim - 1;
    for (int d = 0; d < geometry.ndim; ++d) {
      geometry.size[d] = given.sizes[d + 1];
      geometry.numel *= given.sizes[d + 1];
    }
    call_.work = geometry.rows * geometry.numel;
  } else if (!given.same_sizes(first_)) {
    return fail(Wrong::kShape, name, item);
  }
  last_view_ = given;
  view.data = given.data;
  view.dtype = given.dtype();
  flat_ = flat_ && given.contiguous();
  if (given.ndim > 0) view.row_stride = given.strides[0];
  for (int d = 1; d < given.ndim; ++d) view.stride[d - 1] = given.strides[d];
  views_[view_count_++] = &view;
  if (flags & kWritten) call_.outputs[call_.output_count++] = &view;
}

void Parser::view(const char* name, View& view, Kind kind, unsigned flags) {
  TensorRef given;
  Source::Found found;
  if (!next(name, kind, flags)) return;
  if (take(name, -1, kind, flags, given, found)) return place(view, name, -1, given, flags);
  if (!ok() || found != Source::Found::kMake) return;
  // One like the state, or like the output before it, which lies in some order without gaps.
  const Element last = static_cast<Element>(views_[view_count_ - 1]->dtype);
  const Element type = given.type != Element::kOther ? given.type : kind == Kind::kLower ? last : state_;
  const Result& made = make_like(first_, 0, type, &view.data);
  place(view, name, -1, made.tensor(), flags);
}

void Parser::views(const char* name, View* views, int least, int most, Kind kind) {
  if (!next(name, kind, kList)) return;
  const int count = source_->count(next_ - 1);
  if (count < 0) return fail(Wrong::kType, name);
  if (count < least || count > most) return fail(Wrong::kCount, name);
  for (int i = 0; i < count && ok(); ++i) {
    TensorRef given;
    Source::Found found;
    if (take(name, i, kind, 0, given, found)) place(views[i], name, i, given, 0);
  }
}

void Parser::table(Table& table, int64_t columns) {
  TensorRef given;
  if (tensor("table", Kind::kTable, 0, given)) {
    if (given.ndim != 2 || given.sizes[1] != columns) return fail(Wrong::kShape, "table");
    table.data = static_cast<const double*>(given.data);
    table.rows = given.sizes[0];
  }
  const bool by_index = per_sample("index", Kind::kIntegers, kOptional, table.index, &table.index_stride);
  if (ok() && !by_index && table.rows != 1 && table.rows != geometry_->rows) fail(Wrong::kCount, "table");
}

void Parser::noise(NoiseSource& noise, unsigned flags) {
  TensorRef seeds;
  if (tensor("seeds", Kind::kSeeds, flags, seeds)) {
    const bool keys = seeds.type == Element::kUInt64;
    const bool fits = seeds.ndim == (keys ? 2 : 1) && seeds.sizes[0] == geometry_->rows;
    if (!fits || (keys && seeds.sizes[1] != 2)) return fail(Wrong::kShape, "seeds");
    noise.seeds = static_cast<const int64_t*>(seeds.data);
    noise.seeds_stride = keys ? 2 : 1;
  }
  per_sample("streams", Kind::kIntegers, kOptional, noise.streams, &noise.streams_stride);
  per_sample("positions", Kind::kIntegers, kOptional, noise.positions, &noise.positions_stride);
  counter("stream", noise.stream);
  counter("step", noise.step);
  window(noise.window);
}

int64_t Parser::window_part(const char* name, Call::Integers& out) {
  if (const int64_t count = list(name, out.values, kMaxDims); options()) out.count = count;
  return out.count;
}

// The window of each sample that the tensors hold; without one, they hold whole samples.
void Parser::window(Window& window) {
  const int64_t offsets = window_part("offset", call_.offset), sizes = window_part("global_shape", call_.global_shape);
  const int64_t *offset = call_.offset.values, *whole = call_.global_shape.values;
  if (!ok()) return;
  const Geometry& geometry = *geometry_;
  const bool none = offsets == 0 && sizes == 0;
  if (!none && (offsets != geometry.ndim || sizes != geometry.ndim)) return fail(Wrong::kWindow, "offset");
  int64_t stride = 1;
  for (int d = geometry.ndim - 1; d >= 0; --d) {
    window.stride[d] = stride;
    const int64_t size = none ? geometry.size[d] : whole[d];
    int64_t start = 0;
    if (!none && (offset[d] < 0 || size < 0 || offset[d] > size - geometry.size[d] ||
                  __builtin_mul_overflow(offset[d], stride, &start) ||
                  __builtin_add_overflow(window.base, start, &window.base))) {
      return fail(Wrong::kWindow, "offset");
    }
    flat_ = flat_ && (none || geometry.size[d] == size || d == 0);
    if (__builtin_mul_overflow(stride, size, &stride)) return fail(Wrong::kWindow, "global_shape");
  }
}

// Once every operand is known: dimensions that all of them walk as one are merged.
void Parser::finish_samples(Window& window, bool in_order) {
  check_overlaps();
  if (!ok()) return;
  Geometry& geometry = *geometry_;
  if (!flat_) return collapse(geometry, views_, view_count_, window, in_order);
  geometry.ndim = 1;
  geometry.size[0] = geometry.numel;
  window.stride[0] = 1;
  for (int v = 0; v < view_count_; ++v) views_[v]->stride[0] = 1;
}

void Parser::check_overlaps() {
  if (!writes_) return;
  for (int i = 0; i < memory_count_ && ok(); ++i) {
    const Memory& out = memory_[i];
    if (!out.written) continue;
    if (overlaps_itself(out.tensor)) return fail(Wrong::kSelfOverlap, out.name, out.item);
    for (int k = 0; k < memory_count_; ++k) {
      const Memory& other = memory_[k];
      if (k == i || (other.written && k > i)) continue;
      if (overlap(out.tensor, other.tensor, !other.written))
        return fail(Wrong::kOverlap, out.name, out.item, other.name);
    }
  }
}

// --- results

Result& Parser::make(Element type, void** slot, int ndim, const int64_t* sizes) {
  Result& made = call_.results[call_.result_count++];
  made.type = type;
  made.ndim = ndim;
  made.like = -1;
  made.slot = slot;
  std::copy(sizes, sizes + ndim, made.sizes);
  return made;
}

Result& Parser::make_like(const TensorRef& like, int operand, Element type, void** slot) {
  Result& made = make(type, slot, like.ndim, like.sizes);
  made.like = type == like.type && dense(like) ? operand : -1;
  made.in_order_of(like);
  return made;
}

bool Parser::next_result(const char* shape) {
  if (described_ != nullptr) described_->results.push_back(shape);
  return ok();
}

void Parser::result(const char* shape, Element type, void** slot, std::initializer_list<int64_t> sizes) {
  if (!next_result(shape)) return;
  Result& made = make(type, slot, static_cast<int>(sizes.size()), sizes.begin());
  int64_t stride = 1;
  for (int d = made.ndim - 1; d >= 0; stride *= made.sizes[d--]) made.strides[d] = stride;
}

Result* Parser::result_like(const char* shape, const TensorRef& like, void** slot, int operand) {
  return next_result(shape) ? &make_like(like, operand, like.type, slot) : nullptr;
}

void Parser::result_view(const char* shape, View& view, int operand) {
  const Result* made = result_like(shape, last_view_, &view.data, operand);
  if (made != nullptr) place(view, shape, -1, made->tensor(), kWritten);
}

}  // namespace pyfold::ops

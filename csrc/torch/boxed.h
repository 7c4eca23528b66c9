#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "ops/op.h"

// Every op for torch's dispatcher: operands from its stack, results to it, and between them what each device's file
// gives as Launch.
namespace pyfold::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

// In the order of Element.
constexpr ScalarType kScalarTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half,
                                       ScalarType::Long,  ScalarType::Byte,   ScalarType::UInt64};

inline Element element_of(ScalarType type) {
  return static_cast<Element>(std::find(std::begin(kScalarTypes), std::end(kScalarTypes), type) - kScalarTypes);
}

// The operands of one call. What the stack owns is taken from it, and kept until the call returns.
class Stack final : public Source {
 public:
  Stack(const Op& op, StableIValue* stack) : stack_(stack), owned_(op.operands.size()) {
    for (size_t i = 0; i < owned_.size(); ++i) {
      Owned& owned = owned_[i];
      const Kind kind = op.operands[i].kind;
      const unsigned flags = op.operands[i].flags;
      if (kind == Kind::kInts) {
        owned.integers = to<std::vector<int64_t>>(stack[i]);
      } else if (kind == Kind::kFloats) {
        owned.numbers = to<std::vector<double>>(stack[i]);
      } else if (kind == Kind::kText) {
        owned.text = to<std::string>(stack[i]);
      } else if (kind < Kind::kInt && (flags & kList)) {
        owned.tensors = to<std::vector<Tensor>>(stack[i]);
      } else if (kind < Kind::kInt && !(flags & kOptional)) {
        owned.tensors = {to<Tensor>(stack[i])};
      } else if (kind < Kind::kInt) {
        if (auto tensor = to<std::optional<Tensor>>(stack[i])) owned.tensors = {*tensor};
      }
    }
  }

  const Tensor& operand(int i) const { return owned_[i].tensors[0]; }

  Found tensor(int i, int item, TensorRef& out) override {
    const auto& tensors = owned_[i].tensors;
    if (tensors.empty()) return Found::kAbsent;
    const Tensor& tensor = tensors[item < 0 ? 0 : item];
    out.data = tensor.data_ptr();
    out.type = element_of(tensor.scalar_type());
    out.device_type = tensor.is_cpu() ? kCpu : tensor.is_cuda() ? kCuda : 0;
    out.device_index = out.device_type == kCpu ? 0 : tensor.get_device_index();
    out.ndim = static_cast<int32_t>(tensor.dim());
    out.sizes = tensor.sizes().data();
    out.strides = tensor.strides().data();
    return Found::kGiven;
  }
  int count(int i) override { return static_cast<int>(owned_[i].tensors.size()); }
  bool integer(int i, int64_t& out) override { return out = to<int64_t>(stack_[i]), true; }
  bool boolean(int i, bool& out) override { return out = to<bool>(stack_[i]), true; }
  bool number(int i, double& out) override { return out = to<double>(stack_[i]), true; }
  bool text(int i, std::string_view& out) override { return out = owned_[i].text, true; }
  int64_t list(int i, int64_t* out, int64_t limit) override { return copied(owned_[i].integers, out, limit); }
  int64_t list(int i, double* out, int64_t limit) override { return copied(owned_[i].numbers, out, limit); }

 private:
  struct __attribute__((visibility("hidden"))) Owned {
    std::vector<Tensor> tensors;
    std::string text;
    std::vector<int64_t> integers;
    std::vector<double> numbers;
  };

  template <class T>
  static int64_t copied(const std::vector<T>& values, T* out, int64_t limit) {
    const auto count = static_cast<int64_t>(values.size());
    if (count > limit) return -1;
    std::copy(values.begin(), values.end(), out);
    return count;
  }

  const StableIValue* stack_;
  std::vector<Owned> owned_;
};

inline Tensor make(const Result& result, const Tensor& like) {
  if (result.like == 0) return torch::stable::empty_like(like);
  const auto dtype = to<int32_t>(from(kScalarTypes[static_cast<int>(result.type)]));
  int32_t device_type = 0;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(result.ndim, result.sizes, result.strides, dtype, device_type,
                                                         like.get_device_index(), &made));
  return Tensor(made);
}

// Launch::run(op number, call, the first tensor) launches; Launch::scratch(op number, call) says what it needs for it.
template <class Launch, size_t number>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  const Op& op = all()[number];
  Stack operands(op, stack);
  Call call;
  if (!parse(op, operands, call)) {
    const std::string item = call.error.item < 0 ? "" : std::string("[").append(std::to_string(call.error.item)) + "]";
    STD_TORCH_CHECK(false, "pyfold::", op.name, ": ", call.error.code, " of ", call.error.operand, item, ": ",
                    call.error.text);
  }
  const Tensor& first = operands.operand(0);
  std::vector<Tensor> results;
  for (int i = 0; i < call.result_count; ++i) {
    results.push_back(make(call.results[i], first));
    if (call.results[i].slot != nullptr) *call.results[i].slot = results.back().mutable_data_ptr();
  }
  Launch::run(number, call, first);
  for (size_t i = 0; i < results.size(); ++i) stack[i] = from(results[i]);
}

template <class Launch>
void register_all(torch::stable::detail::StableLibrary& library) {
  const auto each = [&]<size_t... numbers>(std::index_sequence<numbers...>) {
    (library.impl(all()[numbers].name, &boxed<Launch, numbers>), ...);
  };
  each(std::make_index_sequence<kOpCount>());
}

}  // namespace pyfold::ops

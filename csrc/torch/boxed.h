#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <utility>
#include <vector>

#include "ops/op.h"

// Every op for torch's dispatcher: operands from its stack, results to it, and between them what each device's file
// gives as Launch.
namespace pyfold::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::Double:
      return Element::kFloat64;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::Long:
      return Element::kInt64;
    case ScalarType::Byte:
      return Element::kUInt8;
    case ScalarType::UInt64:
      return Element::kUInt64;
    default:
      return Element::kOther;
  }
}

inline ScalarType scalar_type_of(Element element) {
  constexpr ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half,
                                  ScalarType::Long,  ScalarType::Byte,   ScalarType::UInt64};
  return types[static_cast<int>(element)];
}

// The operands of one call, kept until it returns.
class Stack final : public Source {
 public:
  Stack(const Op& op, StableIValue* stack) : operands_(op.operands), values_(op.operands.size()) {
    using torch::stable::detail::to;
    for (size_t i = 0; i < values_.size(); ++i) {
      Value& value = values_[i];
      const unsigned flags = operands_[i].flags;
      switch (operands_[i].kind) {
        case Kind::kInt:
          value.integer = to<int64_t>(stack[i]);
          break;
        case Kind::kBool:
          value.integer = to<bool>(stack[i]);
          break;
        case Kind::kFloat:
          value.number = to<double>(stack[i]);
          break;
        case Kind::kInts:
          value.integers = to<std::vector<int64_t>>(stack[i]);
          break;
        case Kind::kFloats:
          value.numbers = to<std::vector<double>>(stack[i]);
          break;
        case Kind::kText:
          value.text = to<std::string>(stack[i]);
          break;
        default:
          if (flags & kList) {
            value.tensors = to<std::vector<Tensor>>(stack[i]);
          } else if (!(flags & kOptional)) {
            value.tensors = {to<Tensor>(stack[i])};
          } else if (auto tensor = to<std::optional<Tensor>>(stack[i])) {
            value.tensors = {*tensor};
          }
      }
    }
  }

  const Tensor& operand(int i) const { return values_[i].tensors[0]; }

  Found tensor(int i, int item, TensorRef& out) override {
    const auto& tensors = values_[i].tensors;
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
  int count(int i) override { return static_cast<int>(values_[i].tensors.size()); }
  bool integer(int i, int64_t& out) override { return out = values_[i].integer, true; }
  bool number(int i, double& out) override { return out = values_[i].number, true; }
  bool text(int i, std::string_view& out) override { return out = values_[i].text, true; }
  int64_t integers(int i, int64_t* out, int64_t limit) override { return copied(values_[i].integers, out, limit); }
  int64_t numbers(int i, double* out, int64_t limit) override { return copied(values_[i].numbers, out, limit); }

 private:
  struct __attribute__((visibility("hidden"))) Value {
    std::vector<Tensor> tensors;
    int64_t integer = 0;
    double number = 0;
    std::string text;
    std::vector<int64_t> integers;
    std::vector<double> numbers;
  };

  template <class T>
  static int64_t copied(const std::vector<T>& values, T* out, int64_t limit) {
    if (static_cast<int64_t>(values.size()) > limit) return -1;
    std::copy(values.begin(), values.end(), out);
    return static_cast<int64_t>(values.size());
  }

  const std::vector<Operand>& operands_;
  std::vector<Value> values_;
};

inline Tensor make(const Result& result, const Tensor& like) {
  if (result.like == 0) return torch::stable::empty_like(like);
  const auto dtype = torch::stable::detail::from(scalar_type_of(result.type));
  int32_t device_type = 0;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(result.ndim, result.sizes, result.strides,
                                                         torch::stable::detail::to<int32_t>(dtype), device_type,
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
    const std::string item = call.error.item < 0 ? "" : "[" + std::to_string(call.error.item) + "]";
    STD_TORCH_CHECK(false, "pyfold::", op.name, ": ", name_of(call.error.code), " of ", call.error.operand, item, ": ",
                    call.error.text);
  }
  const Tensor& first = operands.operand(0);
  std::vector<Tensor> results;
  for (int i = 0; i < call.result_count; ++i) {
    results.push_back(make(call.results[i], first));
    if (call.results[i].slot != nullptr) *call.results[i].slot = results.back().mutable_data_ptr();
  }
  Launch::run(number, call, first);
  for (size_t i = 0; i < results.size(); ++i) stack[i] = torch::stable::detail::from(results[i]);
}

template <class Launch, size_t... numbers>
void register_all(torch::stable::detail::StableLibrary& library, std::index_sequence<numbers...>) {
  (library.impl(all()[numbers].name, &boxed<Launch, numbers>), ...);
}

template <class Launch>
void register_all(torch::stable::detail::StableLibrary& library) {
  register_all<Launch>(library, std::make_index_sequence<kOpCount>());
}

}  // namespace pyfold::ops

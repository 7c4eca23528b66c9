#pragma once

#include <math.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "diffusion/noising.h"
#include "ops/op.h"
#include "python/torch.h"

// What the operands of a call are, from Python's objects.
namespace pyfold {

struct Dropped {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Dropped>;

inline PyObject* object_of(PyObject* object) { return Py_NewRef(object); }
inline PyObject* object_of(int64_t number) { return PyLong_FromLongLong(number); }

template <class T>
PyObject* tuple_of(const T* values, Py_ssize_t count) {
  PyObject* made = PyTuple_New(count);
  for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(made, i, object_of(values[i]));
  return made;
}

inline bool as_integer(PyObject* object, int64_t& out) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  out = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (overflow != 0) out = overflow < 0 ? INT64_MIN : INT64_MAX;
  return true;
}

inline bool as_number(PyObject* object, double& out) {
  if (PyFloat_CheckExact(object)) return out = PyFloat_AS_DOUBLE(object), true;
  if (!PyLong_CheckExact(object)) return false;
  out = PyLong_AsDouble(object);
  const bool fits = PyErr_Occurred() == nullptr;
  PyErr_Clear();
  return fits;
}

inline Element element_of(const DLTensor& given) {
  if (given.lanes != 1) return Element::kOther;
  const int type = given.code << 8 | given.bits;
  constexpr int types[] = {2 << 8 | 32, 2 << 8 | 64, 4 << 8 | 16, 2 << 8 | 16, 64, 1 << 8 | 8, 1 << 8 | 64};
  return static_cast<Element>(std::find(std::begin(types), std::end(types), type) - types);
}

// Whether the tensor is plain memory on a device with kernels.
inline bool describe(PyObject* object, TensorRef& out) {
  DLTensor given;
  if (torch.api->tensor_from_object(object, &given) != 0) return PyErr_Clear(), false;
  out = {static_cast<char*>(given.data) + given.byte_offset,
         element_of(given),
         given.device_type,
         given.device_id,
         given.ndim,
         given.shape,
         given.strides};
  if (out.device_type != kCpu && out.device_type != kCuda) return false;
  const int64_t numel = out.numel();
  if (given.data == nullptr && numel != 0) return false;  // the zeros that autograd makes up
  // Half of a complex tensor may be negated lazily; it has gaps, unless it is a single number.
  if (!out.floating() || (numel != 1 && out.contiguous())) return true;
  static PyObject* const is_neg = interned("is_neg");
  return says_no(PyObject_CallMethodNoArgs(object, is_neg));
}

// Whether the object is a number, or a floating tensor on the CPU of at most so many dimensions.
inline bool values(PyObject* object, int most, double& number, TensorRef& out) {
  if (!is_tensor(object)) return out = tensor_of(number), as_number(object, number) && isfinite(number);
  return describe(object, out) && out.device_type == kCpu && out.floating() && out.ndim <= most;
}

// --- a table from coefficients: alpha, sigma, weight, and the target's two coefficients or the factors of 1, alpha and
// sigma in each, where every coefficient is a number or a tensor of one or of each sample's

struct Coefficient {
  double number = 1;
  TensorRef tensor = tensor_of(number);

  bool take(PyObject* object, int64_t samples) {
    if (object == Py_None) return true;
    return values(object, 1, number, tensor) && (tensor.numel() == 1 || tensor.numel() == samples);
  }
  double of(int64_t sample) const { return entry_of(tensor, sample); }
};

// False where a coefficient is wrong, or not on the CPU.
inline bool noising_rows(PyObject* tuple, int64_t samples, double* rows) {
  if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) != 4) return false;
  PyObject* target = PyTuple_GET_ITEM(tuple, 3);
  const Py_ssize_t parts = PyTuple_CheckExact(target) ? PyTuple_GET_SIZE(target) : 0;
  const bool factors = parts == 6;
  Coefficient given[5];  // alpha, sigma, weight, and the target's two, if not its
  double factor[6] = {};
  bool fits = parts == 2 || factors;
  for (Py_ssize_t i = 0; fits && i < 3 + parts; ++i) {
    PyObject* item = i < 3 ? PyTuple_GET_ITEM(tuple, i) : PyTuple_GET_ITEM(target, i - 3);
    fits = factors && i >= 3 ? as_number(item, factor[i - 3]) : given[i].take(item, samples);
  }
  for (int64_t b = 0; fits && b < samples; ++b, rows += kNoisingColumns) {
    const double a = given[0].of(b), s = given[1].of(b);
    rows[kNoising_alpha] = a;
    rows[kNoising_sigma] = s;
    rows[kNoising_target_x0] = factors ? factor[0] + factor[1] * a + factor[2] * s : given[3].of(b);
    rows[kNoising_target_epsilon] = factors ? factor[3] + factor[4] * a + factor[5] * s : given[4].of(b);
    rows[kNoising_weight] = given[2].of(b);
    fits = std::all_of(rows, rows + kNoisingColumns, [](double value) { return isfinite(value); });
  }
  return fits;
}

// --- one call's arguments

class Arguments final : public ops::Source {
 public:
  // quiet: a call that is wrong is left to the one that reads all of it.
  Arguments(const ops::Op& op, PyObject* const* args, bool quiet = false) : op_(op), args_(args), quiet_(quiet) {}

  enum class Way { kRun, kGradient, kDispatch };

  // What has to be known before anything is parsed. output: what the call was given to write to, or null.
  Way way(const char*& output) {
    Way way = Way::kRun;
    for (size_t i = 0; i < op_.operands.size(); ++i) {
      const ops::Operand& operand = op_.operands[i];
      if (operand.kind >= ops::Kind::kInt || args_[i] == Py_None) continue;
      const bool list = operand.flags & ops::kList;
      const Py_ssize_t count = list ? size(i) : 1;
      for (Py_ssize_t k = 0; k < count; ++k) {
        PyObject* object = item(i, list ? static_cast<int>(k) : -1);
        if (!is_tensor(object)) {
          if (PyObject_TypeCheck(object, torch.tensor)) return Way::kDispatch;
          continue;
        }
        if (operand.flags & ops::kWritten) output = operand.name;
        if (operand.kind <= ops::Kind::kAccumulation && requires_grad(object)) way = Way::kGradient;
      }
    }
    return way == Way::kGradient && says_no(PyObject_CallNoArgs(torch.grad_enabled)) ? Way::kRun : way;
  }

  // Null, where what is wrong is raised; None where only torch can tell.
  PyObject* explain(const ops::Error& error) const {
    if (quiet_) Py_RETURN_NONE;
    const Owned args(tuple_of(args_, op_.operands.size()));
    return PyObject_CallFunction(torch.explain, "sssisO", op_.name, error.code, error.operand, error.item, error.text,
                                 args.get());
  }

  Found tensor(int i, int at, TensorRef& out) override {
    PyObject* object = item(i, at);
    const unsigned flags = op_.operands[i].flags;
    const bool written = flags & ops::kWritten;
    if (object == Py_None) return written && !(flags & ops::kOptional) ? Found::kMake : Found::kAbsent;
    if (written && object == Py_True) return Found::kMake;
    if (written && Py_TYPE(object) == Py_TYPE(PyTuple_GET_ITEM(torch.dtypes, 0))) {
      int type = 0;
      while (type < 4 && PyTuple_GET_ITEM(torch.dtypes, type) != object) ++type;
      out.type = static_cast<Element>(type);
      return type < 4 ? Found::kMake : Found::kNoTensor;
    }
    if (is_tensor(object)) {
      if (!describe(object, out)) return Found::kUnreadable;
      return op_.operands[i].kind != ops::Kind::kAccumulation || converted(i, object, out) ? Found::kGiven
                                                                                           : Found::kUnreadable;
    }
    if (op_.operands[i].kind != ops::Kind::kTable || !PyTuple_CheckExact(object)) return Found::kNoTensor;
    // The first operand is the samples.
    TensorRef samples;
    if (!describe(args_[0], samples) || samples.ndim == 0 || samples.device_type != kCpu) return Found::kUnreadable;
    table_sizes_[0] = samples.sizes[0];
    constexpr int64_t kFew = sizeof few_rows_ / sizeof few_rows_[0] / kNoisingColumns;
    if (samples.sizes[0] > kFew) many_rows_.resize(samples.sizes[0] * kNoisingColumns);
    double* rows = samples.sizes[0] > kFew ? many_rows_.data() : few_rows_;
    if (!noising_rows(object, samples.sizes[0], rows)) return Found::kUnreadable;
    out = {rows, Element::kFloat64, kCpu, 0, 2, table_sizes_, table_strides_};
    return Found::kGiven;
  }
  int count(int i) override { return static_cast<int>(size(i)); }
  bool integer(int i, int64_t& out) override { return as_integer(args_[i], out); }
  bool boolean(int i, bool& out) override { return out = args_[i] == Py_True, PyBool_Check(args_[i]); }
  bool number(int i, double& out) override { return as_number(args_[i], out); }
  bool text(int i, std::string_view& out) override {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_CheckExact(args_[i]) ? PyUnicode_AsUTF8AndSize(args_[i], &length) : nullptr;
    PyErr_Clear();
    out = {text != nullptr ? text : "", static_cast<size_t>(length)};
    return text != nullptr;
  }
  int64_t list(int i, int64_t* out, int64_t limit) override { return several(i, out, limit, as_integer); }
  int64_t list(int i, double* out, int64_t limit) override { return several(i, out, limit, as_number); }

 private:
  // Parameters of other dtypes are taken in the accumulation type of the first operand. No gradient is needed here.
  bool converted(int i, PyObject* object, TensorRef& out) {
    TensorRef first;
    if (!is_tensor(args_[0]) || !describe(args_[0], first) || !first.floating() || !out.floating()) return true;
    const Element wanted = first.type == Element::kFloat64 ? Element::kFloat64 : Element::kFloat32;
    if (out.type == wanted && out.contiguous()) return true;
    static PyObject *const to = interned("to"), *const contiguous = interned("contiguous");
    PyObject* dtype = PyTuple_GET_ITEM(torch.dtypes, static_cast<int>(wanted));
    Owned made(PyObject_CallMethodOneArg(object, to, dtype));
    if (made != nullptr) converted_[i].reset(PyObject_CallMethodNoArgs(made.get(), contiguous));
    PyErr_Clear();
    return converted_[i] != nullptr && describe(converted_[i].get(), out);
  }

  static bool is_list(PyObject* object) { return PyList_CheckExact(object) || PyTuple_CheckExact(object); }

  // Of a list of tensors, which may be one alone.
  Py_ssize_t size(int i) {
    if (is_tensor(args_[i])) return 1;
    if (!is_list(args_[i])) return -1;
    return PySequence_Fast_GET_SIZE(list(i));
  }
  // Lists, which are among the first operands, are copied: another thread may take tensors out of them meanwhile.
  PyObject* list(int i) {
    if (!PyList_CheckExact(args_[i])) return args_[i];
    Owned& copy = lists_[i];
    if (copy == nullptr) copy.reset(PyList_AsTuple(args_[i]));
    return copy.get();
  }
  PyObject* item(int i, int at) {
    return at < 0 || is_tensor(args_[i]) ? args_[i] : PySequence_Fast_GET_ITEM(list(i), at);
  }
  template <class T>
  int64_t several(int i, T* out, int64_t limit, bool (*read)(PyObject*, T&)) {
    if (!is_list(args_[i]) || PySequence_Fast_GET_SIZE(args_[i]) > limit) return -1;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(args_[i]);
    for (Py_ssize_t k = 0; k < count; ++k) {
      if (!read(PySequence_Fast_GET_ITEM(args_[i], k), out[k])) return -1;
    }
    return count;
  }

  const ops::Op& op_;
  PyObject* const* args_;
  const bool quiet_;
  Owned lists_[4], converted_[4];  // of the first operands
  int64_t table_sizes_[2] = {0, kNoisingColumns}, table_strides_[2] = {kNoisingColumns, 1};
  double few_rows_[16 * kNoisingColumns];
  std::vector<double> many_rows_;
};

}  // namespace pyfold

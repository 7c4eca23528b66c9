#include <math.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <memory>

#include "diffusion/noising.h"
#include "ops/op.h"
#include "python/torch.h"

// Calls past torch's dispatcher, which costs three to five microseconds: more than a kernel of a few thousand elements.
// An entry asks once whether anything watches or transforms the call, and whether it needs a gradient; then it parses
// the arguments once and runs.
namespace pyfold {
namespace {

using ops::Call;
using ops::Kind;
using ops::Op;
using ops::Operand;

struct Dropped {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Dropped>;

bool as_integer(PyObject* object, int64_t& out) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  out = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (overflow != 0) out = overflow < 0 ? INT64_MIN : INT64_MAX;
  return true;
}

bool as_number(PyObject* object, double& out) {
  if (PyFloat_CheckExact(object)) return out = PyFloat_AS_DOUBLE(object), true;
  if (!PyLong_CheckExact(object)) return false;
  out = PyLong_AsDouble(object);
  const bool fits = PyErr_Occurred() == nullptr;
  PyErr_Clear();
  return fits;
}

Element element_of(const DLTensor& given) {
  if (given.lanes != 1) return Element::kOther;
  const int type = given.code << 8 | given.bits;
  constexpr int types[] = {2 << 8 | 32, 2 << 8 | 64, 4 << 8 | 16, 2 << 8 | 16, 64, 1 << 8 | 8};
  return static_cast<Element>(std::find(types, types + 6, type) - types);
}

// Whether the tensor is plain memory on a device with kernels.
bool describe(PyObject* object, TensorRef& out) {
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

// --- a table from coefficients: alpha, sigma, weight, and the target's two coefficients or the factors of 1, alpha and
// sigma in each, where every coefficient is a number or a tensor of one or of each sample's

struct Coefficient {
  double number = 1;
  TensorRef tensor{};

  bool take(PyObject* object, int64_t samples) {
    if (object == Py_None) return true;
    if (!is_tensor(object)) return as_number(object, number) && isfinite(number);
    if (!describe(object, tensor) || tensor.device_type != kCpu || !tensor.floating() || tensor.ndim > 1) return false;
    return tensor.numel() == 1 || tensor.numel() == samples;
  }
  double of(int64_t sample) const {
    if (tensor.data == nullptr) return number;
    const int64_t at = tensor.ndim == 0 || tensor.sizes[0] == 1 ? 0 : sample * tensor.strides[0];
    switch (tensor.dtype()) {
      case DType::kFloat32:
        return static_cast<const float*>(tensor.data)[at];
      case DType::kFloat64:
        return static_cast<const double*>(tensor.data)[at];
      case DType::kBFloat16:
        return widen(static_cast<const BFloat16*>(tensor.data)[at]);
      default:
        return widen(static_cast<const Float16*>(tensor.data)[at]);
    }
  }
};

// False where a coefficient is wrong, or not on the CPU.
bool noising_rows(PyObject* tuple, int64_t samples, double* rows) {
  if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) != 4) return false;
  PyObject* target = PyTuple_GET_ITEM(tuple, 3);
  Coefficient alpha, sigma, weight, of_x0, of_epsilon;
  if (!alpha.take(PyTuple_GET_ITEM(tuple, 0), samples) || !sigma.take(PyTuple_GET_ITEM(tuple, 1), samples) ||
      !weight.take(PyTuple_GET_ITEM(tuple, 2), samples) || !PyTuple_CheckExact(target)) {
    return false;
  }
  const bool named = PyTuple_GET_SIZE(target) == 6;
  double factor[6] = {};
  for (int i = 0; named && i < 6; ++i) {
    if (!as_number(PyTuple_GET_ITEM(target, i), factor[i])) return false;
  }
  if (!named && (PyTuple_GET_SIZE(target) != 2 || !of_x0.take(PyTuple_GET_ITEM(target, 0), samples) ||
                 !of_epsilon.take(PyTuple_GET_ITEM(target, 1), samples))) {
    return false;
  }
  for (int64_t b = 0; b < samples; ++b, rows += kNoisingColumns) {
    const double a = alpha.of(b), s = sigma.of(b);
    rows[kNoising_alpha] = a;
    rows[kNoising_sigma] = s;
    rows[kNoising_target_x0] = named ? factor[0] + factor[1] * a + factor[2] * s : of_x0.of(b);
    rows[kNoising_target_epsilon] = named ? factor[3] + factor[4] * a + factor[5] * s : of_epsilon.of(b);
    rows[kNoising_weight] = weight.of(b);
    for (int c = 0; c < kNoisingColumns; ++c) {
      if (!isfinite(rows[c])) return false;
    }
  }
  return true;
}

// --- one call's arguments

class Arguments final : public ops::Source {
 public:
  Arguments(const Op& op, PyObject* const* args) : op_(op), args_(args) {}

  enum class Way { kRun, kGradient, kDispatch, kFailed };

  // What has to be known before anything is parsed.
  Way way() {
    const bool grad_enabled = !says_no(PyObject_CallNoArgs(torch.grad_enabled));
    Way way = Way::kRun;
    const char* output = nullptr;
    for (size_t i = 0; i < op_.operands.size(); ++i) {
      const Operand& operand = op_.operands[i];
      if (operand.kind >= Kind::kInt || args_[i] == Py_None) continue;
      const Py_ssize_t count = operand.flags & ops::kList ? size(i) : 1;
      for (Py_ssize_t k = 0; k < count; ++k) {
        PyObject* object = item(i, operand.flags & ops::kList ? static_cast<int>(k) : -1);
        if (!is_tensor(object)) {
          if (PyObject_TypeCheck(object, torch.tensor)) return Way::kDispatch;
        } else {
          const bool learns = grad_enabled && operand.kind <= Kind::kAccumulation && requires_grad(object);
          if (operand.flags & ops::kWritten) output = operand.name;
          if (learns) way = Way::kGradient;
        }
      }
    }
    if (way != Way::kGradient || output == nullptr) return way;
    return explain({ops::Wrong::kGradient, output, -1, ""});
  }

  // Raises what is wrong; kDispatch where only torch can tell.
  Way explain(const ops::Error& error) const {
    Owned args(PyTuple_New(op_.operands.size()));
    for (size_t i = 0; i < op_.operands.size(); ++i) PyTuple_SET_ITEM(args.get(), i, Py_NewRef(args_[i]));
    Owned done(PyObject_CallFunction(torch.explain, "sssisO", op_.name, ops::name_of(error.code), error.operand,
                                     error.item, error.text, args.get()));
    return done == nullptr ? Way::kFailed : Way::kDispatch;
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
      return op_.operands[i].kind != Kind::kAccumulation || converted(i, object, out) ? Found::kGiven
                                                                                      : Found::kUnreadable;
    }
    if (op_.operands[i].kind != Kind::kTable || !PyTuple_CheckExact(object)) return Found::kNoTensor;
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
  bool integer(int i, int64_t& out) override {
    if (op_.operands[i].kind != Kind::kBool) return as_integer(args_[i], out);
    out = args_[i] == Py_True;
    return PyBool_Check(args_[i]);
  }
  bool number(int i, double& out) override { return as_number(args_[i], out); }
  bool text(int i, std::string_view& out) override {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_CheckExact(args_[i]) ? PyUnicode_AsUTF8AndSize(args_[i], &length) : nullptr;
    PyErr_Clear();
    out = {text != nullptr ? text : "", static_cast<size_t>(length)};
    return text != nullptr;
  }
  int64_t integers(int i, int64_t* out, int64_t limit) override { return several(i, out, limit, as_integer); }
  int64_t numbers(int i, double* out, int64_t limit) override { return several(i, out, limit, as_number); }

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

  const Op& op_;
  PyObject* const* args_;
  Owned lists_[4], converted_[4];  // of the first operands
  int64_t table_sizes_[2] = {0, kNoisingColumns}, table_strides_[2] = {kNoisingColumns, 1};
  double few_rows_[16 * kNoisingColumns];
  std::vector<double> many_rows_;
};

// --- running

PyObject* make(const ops::Result& result, PyObject* const* args, int32_t device_type) {
  if (result.like >= 0) return PyObject_CallOneArg(torch.empty_like, args[result.like]);
  static PyObject* const device = interned("device");
  static PyObject* const names = Py_BuildValue("(ss)", "dtype", "device");
  static PyObject* const dtype_name = Py_BuildValue("(s)", "dtype");
  Owned sizes(PyTuple_New(result.ndim)), strides(PyTuple_New(result.ndim)), where;
  for (int d = 0; d < result.ndim; ++d) {
    PyTuple_SET_ITEM(sizes.get(), d, PyLong_FromLongLong(result.sizes[d]));
    PyTuple_SET_ITEM(strides.get(), d, PyLong_FromLongLong(result.strides[d]));
  }
  PyObject* dtype = PyTuple_GET_ITEM(torch.dtypes, static_cast<int>(result.type));
  PyObject* given[] = {sizes.get(), strides.get(), dtype, nullptr};
  if (device_type == kCpu) return PyObject_Vectorcall(torch.empty_strided, given, 2, dtype_name);
  where.reset(PyObject_GetAttr(args[0], device));
  given[3] = where.get();
  return where == nullptr ? nullptr : PyObject_Vectorcall(torch.empty_strided, given, 2, names);
}

// From here on other Python threads may run meanwhile.
constexpr int64_t kLongWork = 32768;

// What failed, or nothing.
std::string launch(size_t number, Call& call, void* stream) {
  const bool on_cpu = call.device_type == kCpu;
  PyThreadState* state = on_cpu && call.work > kLongWork ? PyEval_SaveThread() : nullptr;
  std::string failed;
  try {
    if (on_cpu) {
      ops::all()[number].cpu(call);
    } else if (const char* error = ops::cuda_launch().launch(number, call, stream)) {
      failed = error;
    }
  } catch (const std::exception& error) {
    failed = error.what();
  }
  if (state == nullptr) return failed;
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    // The interpreter is gone, and ends a daemon thread by unwinding it (before Python 3.14). What lies on this stack
    // may be dropped no more: the thread sleeps until the process ends.
    for (;;) pause();
  }
  return failed;
}

PyObject* run(size_t number, PyObject* const* args, Arguments& arguments) {
  const Op& op = ops::all()[number];
  Call call;
  if (!ops::parse(op, arguments, call)) {
    return arguments.explain(call.error) == Arguments::Way::kFailed ? nullptr : Py_NewRef(Py_None);
  }
  Owned made[4], scratch;
  void* stream = nullptr;
  if (call.device_type == kCuda) {
    Owned current(PyObject_CallNoArgs(torch.cuda_device));
    if (current == nullptr || ops::cuda_launch().launch == nullptr ||
        PyLong_AsLong(current.get()) != call.device_index ||
        torch.api->current_work_stream(kCuda, call.device_index, &stream) != 0) {
      PyErr_Clear();
      return Py_NewRef(Py_None);
    }
    if (const int64_t count = ops::cuda_launch().scratch(number, call); count > 0) {
      ops::Result partial{Element::kFloat64, 1, -1, -1, {count}, {1}, &call.scratch};
      scratch.reset(make(partial, args, kCuda));
      TensorRef tensor;
      if (scratch == nullptr || !describe(scratch.get(), tensor)) return nullptr;
      call.scratch = tensor.data;
    }
  }
  for (int i = 0; i < call.result_count; ++i) {
    const ops::Result& result = call.results[i];
    if (result.slot == nullptr) continue;
    TensorRef tensor;
    made[i].reset(make(result, args, call.device_type));
    if (made[i] == nullptr) return nullptr;
    if (!describe(made[i].get(), tensor)) return PyErr_Format(PyExc_RuntimeError, "pyfold: no memory to write to");
    *result.slot = tensor.data;
  }
  if (const std::string failed = launch(number, call, stream); !failed.empty()) {
    return PyErr_Format(PyExc_RuntimeError, "pyfold::%s: %s", op.name, failed.c_str());
  }
  // Results, the first one bare where it alone was asked for; of an op that writes operands the first of these, and all
  // that were made.
  PyObject* returned[4];
  int count = 0;
  for (size_t i = 0; i < op.operands.size(); ++i) {
    if (!(op.operands[i].flags & ops::kWritten) || !is_tensor(args[i])) continue;
    static PyObject* const is_inference = interned("is_inference");
    if (says_no(PyObject_CallMethodNoArgs(args[i], is_inference))) {
      Owned tuple(PyTuple_Pack(1, args[i])), raised(PyObject_CallOneArg(torch.increment_version, tuple.get()));
      if (raised == nullptr) return nullptr;
    }
    if (!(op.operands[i].flags & ops::kOptional)) returned[count++] = args[i];
  }
  const bool bits = !op.results.empty() && std::any_of(made + 1, made + 4, [](const Owned& m) { return m != nullptr; });
  for (int i = 0; i < call.result_count; ++i) {
    if (made[i] != nullptr || bits) returned[count++] = made[i] != nullptr ? made[i].get() : Py_None;
  }
  if (count == 1) return Py_NewRef(returned[0]);
  PyObject* all = PyTuple_New(count);
  for (int i = 0; i < count; ++i) PyTuple_SET_ITEM(all, i, Py_NewRef(returned[i]));
  return all;
}

// --- entries

PyObject* gradients[ops::kOpCount];

template <bool gated>
PyObject* entry(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const size_t number = PyLong_AsSize_t(self);
  const Op& op = ops::all()[number];
  if (count != static_cast<Py_ssize_t>(op.operands.size())) {
    std::string names;
    for (const Operand& operand : op.operands) names += (names.empty() ? "" : ", ") + std::string(operand.name);
    return PyErr_Format(PyExc_TypeError, "%s takes %s", op.name, names.c_str());
  }
  if (torch.api == nullptr || (gated && watched())) Py_RETURN_NONE;
  Arguments arguments(op, args);
  switch (gated ? arguments.way() : Arguments::Way::kRun) {
    case Arguments::Way::kRun:
      return run(number, args, arguments);
    case Arguments::Way::kGradient:
      if (gradients[number] == nullptr) Py_RETURN_NONE;
      return PyObject_Vectorcall(gradients[number], args, count, nullptr);
    case Arguments::Way::kDispatch:
      Py_RETURN_NONE;
    case Arguments::Way::kFailed:
      break;
  }
  return nullptr;
}

PyObject* noising_table(PyObject*, PyObject* const* args, Py_ssize_t count) {
  TensorRef table;
  if (count != 2) return PyErr_Format(PyExc_TypeError, "noising_table takes table, coefficients");
  if (torch.api == nullptr || !is_tensor(args[0]) || !describe(args[0], table)) Py_RETURN_FALSE;
  const bool fits = table.type == Element::kFloat64 && table.device_type == kCpu && table.ndim == 2 &&
                    table.contiguous() && table.sizes[1] == kNoisingColumns;
  return PyBool_FromLong(fits && noising_rows(args[1], table.sizes[0], static_cast<double*>(table.data)));
}

PyObject* differentiate(PyObject*, PyObject* const* args, Py_ssize_t count) {
  for (size_t i = 0; count == 2 && i < ops::kOpCount; ++i) {
    if (PyUnicode_CompareWithASCIIString(args[0], ops::all()[i].name) != 0) continue;
    gradients[i] = Py_NewRef(args[1]);
    Py_RETURN_NONE;
  }
  return PyErr_Format(PyExc_TypeError, "differentiate takes the name of an op, and what runs it with a gradient");
}

PyObject* use_torch(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 11) return PyErr_Format(PyExc_TypeError, "use_torch takes what pyfold/_torch_private.py gives");
  Owned capsule(PyObject_GetAttrString(args[0], "__dlpack_c_exchange_api__"));
  const auto* api =
      capsule == nullptr
          ? nullptr
          : static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api"));
  PyErr_Clear();
  if (api == nullptr || api->major != 1 || api->tensor_from_object == nullptr) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(args[i]);
  torch = {api,
           reinterpret_cast<PyTypeObject*>(args[0]),
           reinterpret_cast<PyTypeObject*>(args[1]),
           args[2],
           args[3],
           args[4],
           args[5],
           args[6],
           args[7],
           args[8],
           args[9],
           args[10]};
  Py_RETURN_TRUE;
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

// For each op: _C.<op>, _C.RUN[<op>], which asks no more whether it may, and in _C.OPS what it is.
void add_calls(PyObject* module) {
  static PyMethodDef methods[] = {
      {"use_torch", fast<use_torch>(), METH_FASTCALL, "What is asked of torch; False where it cannot answer."},
      {"differentiate", fast<differentiate>(), METH_FASTCALL, "What runs an op's calls that need a gradient."},
      {"noising_table", fast<noising_table>(), METH_FASTCALL, "Fills in a table from coefficients; whether it could."},
      {"parse_count", [](PyObject*, PyObject*) { return PyLong_FromLongLong(ops::parse_count()); }, METH_NOARGS,
       "How many calls of ops were parsed by this process."},
      {nullptr, nullptr, 0, nullptr},
  };
  static PyMethodDef calls[ops::kOpCount], runs[ops::kOpCount];
  PyModule_AddFunctions(module, methods);
  PyObject *described = PyList_New(0), *run = PyDict_New();
  for (size_t i = 0; i < ops::kOpCount; ++i) {
    const Op& op = ops::all()[i];
    calls[i] = {op.name, fast<entry<true>>(), METH_FASTCALL,
                "The op past the dispatcher; None where torch must see it."};
    runs[i] = {op.name, fast<entry<false>>(), METH_FASTCALL, "The same where that was asked already."};
    PyObject* number = PyLong_FromSize_t(i);
    PyModule_AddObject(module, op.name, PyCFunction_NewEx(&calls[i], number, nullptr));
    PyDict_SetItemString(run, op.name, PyCFunction_NewEx(&runs[i], number, nullptr));
    PyObject *operands = PyList_New(0), *results = PyList_New(0);
    for (const Operand& operand : op.operands) {
      PyList_Append(operands, Py_BuildValue("(siI)", operand.name, static_cast<int>(operand.kind), operand.flags));
    }
    for (const char* result : op.results) PyList_Append(results, PyUnicode_FromString(result));
    PyList_Append(described, Py_BuildValue("(ssNN)", op.name, op.schema().c_str(), operands, results));
  }
  PyModule_AddObject(module, "RUN", run);
  PyModule_AddObject(module, "OPS", described);
}

}  // namespace pyfold

#include <unistd.h>

#include <algorithm>
#include <exception>

#include "folds/unit_planes.h"
#include "python/arguments.h"

// Calls past torch's dispatcher, which costs three to five microseconds: more than a kernel of a few thousand elements.
// An entry asks once whether anything watches or transforms the call, and whether it needs a gradient; then it reads
// the options, or takes those of a prepared call, binds the tensors, and runs.
namespace pyfold {
namespace {

using ops::Call;
using ops::Op;
using ops::Operand;

// --- running

// A tensor beside the first operand, whose address goes to the result's slot; null, and an error, where there is none.
Owned make(const ops::Result& result, PyObject* const* args, bool on_a_gpu = false) {
  static PyObject *const device = interned("device"), *const names = Py_BuildValue("(ss)", "dtype", "device");
  static PyObject* const on_cpu = Py_BuildValue("(s)", "dtype");
  Owned made;
  if (result.like >= 0) {
    made.reset(PyObject_CallOneArg(torch.empty_like, args[result.like]));
  } else {
    const Owned sizes(tuple_of(result.sizes, result.ndim)), strides(tuple_of(result.strides, result.ndim));
    PyObject* dtype = PyTuple_GET_ITEM(torch.dtypes, static_cast<int>(result.type));
    const Owned where(on_a_gpu ? PyObject_GetAttr(args[0], device) : nullptr);
    PyObject* given[] = {sizes.get(), strides.get(), dtype, where.get()};
    made.reset(PyObject_Vectorcall(torch.empty_strided, given, 2, where == nullptr ? on_cpu : names));
  }
  TensorRef tensor;
  if (made == nullptr) return made;
  if (!describe(made.get(), tensor)) return PyErr_Format(PyExc_RuntimeError, "pyfold: no memory to write to"), nullptr;
  *result.slot = tensor.data;
  return made;
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

// Whether the call's device is torch's current one, and then its stream.
bool on_current_device(const Call& call, void*& stream) {
  const Owned current(PyObject_CallNoArgs(torch.cuda_device));
  const bool here = current != nullptr && ops::cuda_launch().launch != nullptr &&
                    PyLong_AsLong(current.get()) == call.device_index &&
                    torch.api->current_work_stream(kCuda, call.device_index, &stream) == 0;
  PyErr_Clear();
  return here;
}

// Results, the first one bare where it alone was asked for; of an op that writes operands the first of these, and all
// that were made.
PyObject* returned(const Op& op, PyObject* const* args, const Call& call, const Owned* made) {
  PyObject* returned[4];
  int count = 0;
  for (size_t i = 0; i < op.operands.size(); ++i) {
    if (!(op.operands[i].flags & ops::kWritten) || !is_tensor(args[i])) continue;
    // Tensors of inference mode count no versions. is_inference() would let other threads run, and a daemon thread that
    // does so at the interpreter's end aborts in torch.
    static PyObject* const version = interned("_version");
    if (const Owned counted(PyObject_GetAttr(args[i], version)); counted == nullptr) {
      PyErr_Clear();
    } else {
      Owned tuple(PyTuple_Pack(1, args[i])), raised(PyObject_CallOneArg(torch.increment_version, tuple.get()));
      if (raised == nullptr) return nullptr;
    }
    if (!(op.operands[i].flags & ops::kOptional)) returned[count++] = args[i];
  }
  const bool bits = !op.results.empty() && std::any_of(made + 1, made + 4, [](const Owned& m) { return m != nullptr; });
  for (int i = 0; i < call.result_count; ++i) {
    if (made[i] != nullptr || bits) returned[count++] = made[i] != nullptr ? made[i].get() : Py_None;
  }
  return count == 1 ? Py_NewRef(returned[0]) : tuple_of(returned, count);
}

// The call already has the options of a prepared one, or none.
PyObject* run(size_t number, PyObject* const* args, Arguments& arguments, Call& call, bool prepared) {
  const Op& op = ops::all()[number];
  const bool read = prepared ? ops::read_tensors(op, arguments, call) : ops::parse(op, arguments, call);
  if (!read) return arguments.explain(call.error);
  Owned made[4], scratch;
  void* stream = nullptr;
  if (call.device_type == kCuda) {
    if (!on_current_device(call, stream)) Py_RETURN_NONE;
    const int64_t count = ops::cuda_launch().scratch(number, call);
    if (count > 0) scratch = make({Element::kFloat64, 1, -1, {count}, {1}, &call.scratch}, args, true);
    if (count > 0 && scratch == nullptr) return nullptr;
  }
  for (int i = 0; i < call.result_count; ++i) {
    if (call.results[i].slot == nullptr) continue;
    made[i] = make(call.results[i], args, call.device_type == kCuda);
    if (made[i] == nullptr) return nullptr;
  }
  if (const std::string failed = launch(number, call, stream); !failed.empty()) {
    return PyErr_Format(PyExc_RuntimeError, "pyfold::%s: %s", op.name, failed.c_str());
  }
  return returned(op, args, call, made);
}

// --- entries

PyObject* gradients[ops::kOpCount];

// Asks whether torch must see the call, and whether it needs a gradient (way() of pyfold/ops/_autograd.py says why).
PyObject* gated(size_t number, PyObject* const* args, Call& call, bool prepared) {
  using Way = Arguments::Way;
  if (watched()) Py_RETURN_NONE;
  const Op& op = ops::all()[number];
  Arguments arguments(op, args, prepared);
  const char* output = nullptr;
  const Way way = arguments.way(output);
  if (way == Way::kRun) return run(number, args, arguments, call, prepared);
  if (way == Way::kGradient && output != nullptr) return arguments.explain({ops::Wrong::kGradient, output});
  if (way == Way::kDispatch || gradients[number] == nullptr) Py_RETURN_NONE;
  return PyObject_Vectorcall(gradients[number], args, op.operands.size(), nullptr);
}

PyObject* check_count(const Op& op, Py_ssize_t count) {
  if (count == static_cast<Py_ssize_t>(op.operands.size())) return Py_None;
  std::string names;
  for (const Operand& operand : op.operands) names += (names.empty() ? "" : ", ") + std::string(operand.name);
  return PyErr_Format(PyExc_TypeError, "%s takes %s", op.name, names.c_str());
}

constexpr size_t kMostOperands = 24;

template <class Function>
PyCFunction fast(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

template <bool asks>
PyObject* entry(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const size_t number = PyLong_AsSize_t(self);
  const Op& op = ops::all()[number];
  if (check_count(op, count) == nullptr) return nullptr;
  Call call;
  if (asks) return gated(number, args, call, false);
  if (torch.api == nullptr) Py_RETURN_NONE;
  Arguments arguments(op, args);
  return run(number, args, arguments, call, false);
}

// Its number; negative, and an error, where there is no such op.
Py_ssize_t number_of(PyObject* name) {
  const auto named = [&](const Op& op) {
    return PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, op.name) == 0;
  };
  const auto found = std::find_if(ops::all().begin(), ops::all().end(), named);
  if (found == ops::all().end()) return PyErr_Format(PyExc_ValueError, "there is no op %R", name), -1;
  return found - ops::all().begin();
}

// --- prepared calls: an op whose options were read once, and some operands that stay

struct Prepared {
  Py_ssize_t number;
  int64_t ndim, dim, size;  // of the first operand: its dimensions, and the size of one; negative: any
  Owned operands;           // a tuple, with ... for those that each call gives
  Call options;
};

PyObject* call_prepared(PyObject* self, PyObject* const* given, Py_ssize_t count, PyObject* names) {
  const Prepared& prepared = *static_cast<Prepared*>(PyCapsule_GetPointer(self, nullptr));
  const Op& op = ops::all()[prepared.number];
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  static PyObject* const nothing = PyTuple_New(0);
  PyObject* args[kMostOperands];
  Py_ssize_t used = 0;  // of what is given
  for (size_t i = 0; i < op.operands.size(); ++i) {
    args[i] = PyTuple_GET_ITEM(prepared.operands.get(), i);
    if (args[i] != Py_Ellipsis) continue;
    if (used < count) {
      args[i] = given[used++];
      continue;
    }
    args[i] = op.operands[i].flags & ops::kList ? nothing : Py_None;
    for (Py_ssize_t k = 0; k < named; ++k) {
      if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, k), op.operands[i].name) != 0) continue;
      args[i] = given[count + k];
      ++used;
    }
  }
  if (used != count + named) {
    return PyErr_Format(PyExc_TypeError, "this call of %s takes no other operands than those left open", op.name);
  }
  TensorRef first;
  if (prepared.ndim >= 0 || prepared.dim >= 0) {
    if (!is_tensor(args[0]) || !describe(args[0], first)) Py_RETURN_NONE;
    if (prepared.ndim >= 0 && prepared.ndim != first.ndim) Py_RETURN_NONE;
    if (prepared.dim >= 0 && (prepared.dim >= first.ndim || prepared.size != first.sizes[prepared.dim])) Py_RETURN_NONE;
  }
  Call call(prepared.options);
  return gated(prepared.number, args, call, true);
}

PyObject* prepare(PyObject*, PyObject* const* args, Py_ssize_t count) {
  constexpr Py_ssize_t kFirst = 4;
  int64_t shape[3];
  bool fits = count >= kFirst;
  for (int i = 0; fits && i < 3; ++i) fits = as_integer(args[1 + i], shape[i]);
  if (!fits) return PyErr_Format(PyExc_TypeError, "prepare takes op, ndim, dim, size, operands");
  const Py_ssize_t number = number_of(args[0]);
  if (number < 0 || check_count(ops::all()[number], count - kFirst) == nullptr) return nullptr;
  if (torch.api == nullptr) Py_RETURN_NONE;
  args += kFirst;
  Owned operands(tuple_of(args, count - kFirst));
  std::unique_ptr<Prepared> made(new Prepared{number, shape[0], shape[1], shape[2], std::move(operands), Call()});
  Arguments arguments(ops::all()[number], args);
  if (!ops::read_options(ops::all()[number], arguments, made->options)) return arguments.explain(made->options.error);
  const auto free = [](PyObject* capsule) { delete static_cast<Prepared*>(PyCapsule_GetPointer(capsule, nullptr)); };
  static PyMethodDef method = {"prepared", fast(call_prepared), METH_FASTCALL | METH_KEYWORDS, nullptr};
  const Owned owner(PyCapsule_New(made.release(), nullptr, free));
  return PyCFunction_NewEx(&method, owner.get(), nullptr);
}

PyObject* noising_table(PyObject*, PyObject* const* args, Py_ssize_t count) {
  TensorRef table;
  if (count != 2) return PyErr_Format(PyExc_TypeError, "noising_table takes table, coefficients");
  if (torch.api == nullptr || !is_tensor(args[0]) || !describe(args[0], table)) Py_RETURN_FALSE;
  const bool fits = table.type == Element::kFloat64 && table.device_type == kCpu && table.ndim == 2 &&
                    table.contiguous() && table.sizes[1] == kNoisingColumns;
  return PyBool_FromLong(fits && noising_rows(args[1], table.sizes[0], static_cast<double*>(table.data)));
}

// The parameters of a program of planes (csrc/folds/unit_planes.h); None where torch must see it, or a gradient may
// flow.
PyObject* make_unit_planes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "unit_planes takes normal, offset, dtype");
  TensorRef normal, offset;
  double number = 0;
  const bool fits = !watched() && is_tensor(args[0]) && values(args[0], 2, number, normal) &&
                    values(args[1], 1, number, offset) && !requires_grad(args[0]) &&
                    !(is_tensor(args[1]) && requires_grad(args[1])) && unit_planes_fit(normal, offset);
  if (!fits) Py_RETURN_NONE;
  const bool wide = args[2] == PyTuple_GET_ITEM(torch.dtypes, static_cast<int>(Element::kFloat64));
  const int64_t size = normal.numel() + normal.numel() / std::max<int64_t>(normal.sizes[normal.ndim - 1], 1);
  void* data = nullptr;
  Owned made = make({wide ? Element::kFloat64 : Element::kFloat32, 1, -1, {size}, {1}, &data}, args);
  if (made != nullptr) unit_planes(normal, offset, data, wide);
  return made.release();
}

PyObject* differentiate(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "differentiate takes op, run");
  const Py_ssize_t number = number_of(args[0]);
  if (number < 0) return nullptr;
  gradients[number] = Py_NewRef(args[1]);
  Py_RETURN_NONE;
}

PyObject* use_torch(PyObject*, PyObject* args) {
  Torch given;
  if (!PyArg_ParseTuple(args, "O!O!OOOOOOOOO;use_torch takes what pyfold/_torch_private.py gives", &PyType_Type,
                        &given.tensor, &PyType_Type, &given.parameter, &given.grad_enabled, &given.empty_like,
                        &given.empty_strided, &given.increment_version, &given.cuda_device, &given.dtypes,
                        &given.explain, &given.forward_mode, &given.watchers)) {
    return nullptr;
  }
  const Owned api(PyObject_GetAttrString(reinterpret_cast<PyObject*>(given.tensor), "__dlpack_c_exchange_api__"));
  if (api != nullptr) {
    given.api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(api.get(), "dlpack_exchange_api"));
  }
  PyErr_Clear();
  if (given.api == nullptr || given.api->major != 1 || given.api->tensor_from_object == nullptr) Py_RETURN_FALSE;
  Py_INCREF(args);  // and so what it holds
  torch = given;
  Py_RETURN_TRUE;
}

}  // namespace

// For each op _C.<op>, and _C.RUN[<op>], which asks no more whether it may.
void add_calls(PyObject* module) {
  static PyMethodDef methods[] = {
      {"use_torch", use_torch, METH_VARARGS, "What is asked of torch; False where it cannot answer."},
      {"differentiate", fast(differentiate), METH_FASTCALL, "What runs an op's calls that need a gradient."},
      {"noising_table", fast(noising_table), METH_FASTCALL, "Fills in a table from coefficients; whether it could."},
      {"unit_planes", fast(make_unit_planes), METH_FASTCALL,
       "The parameters of a program of planes, where torch need not look."},
      {"prepare", fast(prepare), METH_FASTCALL,
       "A call of an op whose options are read once: takes its name, ndim and the size in dim that the first operand\n"
       "has (-1: any), and the operands, ... for those that each call gives, the first in order and others by name.\n"
       "A call runs like _C.<op>; None where torch must see it, the shape is another, or something is wrong."},
      {nullptr, nullptr, 0, nullptr},
  };
  static PyMethodDef calls[ops::kOpCount], runs[ops::kOpCount];
  PyModule_AddFunctions(module, methods);
  PyObject* run = PyDict_New();
  for (size_t i = 0; i < ops::kOpCount; ++i) {
    const char* name = ops::all()[i].name;
    calls[i] = {name, fast(entry<true>), METH_FASTCALL, "The op past the dispatcher; None where torch must see it."};
    runs[i] = {name, fast(entry<false>), METH_FASTCALL, "The same where that was asked already."};
    PyObject* number = PyLong_FromSize_t(i);
    PyModule_AddObject(module, name, PyCFunction_NewEx(&calls[i], number, nullptr));
    PyDict_SetItemString(run, name, PyCFunction_NewEx(&runs[i], number, nullptr));
  }
  PyModule_AddObject(module, "RUN", run);
}

}  // namespace pyfold

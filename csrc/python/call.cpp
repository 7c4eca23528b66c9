#include <stddef.h>
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

// The stream and the memory that a launch on CUDA needs; false where torch must see to it.
bool on_current_device(size_t number, PyObject* const* args, Call& call, void*& stream, Owned& scratch) {
  const Owned current(PyObject_CallNoArgs(torch.cuda_device));
  const bool here = current != nullptr && ops::cuda_launch().launch != nullptr &&
                    PyLong_AsLong(current.get()) == call.device_index &&
                    torch.api->current_work_stream(kCuda, call.device_index, &stream) == 0;
  PyErr_Clear();
  if (!here) return false;
  const int64_t count = ops::cuda_launch().scratch(number, call);
  if (count == 0) return true;
  TensorRef tensor;
  scratch.reset(make({Element::kFloat64, 1, -1, -1, {count}, {1}, &call.scratch}, args, kCuda));
  if (scratch == nullptr || !describe(scratch.get(), tensor)) return PyErr_Clear(), false;
  call.scratch = tensor.data;
  return true;
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
  if (count == 1) return Py_NewRef(returned[0]);
  PyObject* all = PyTuple_New(count);
  for (int i = 0; i < count; ++i) PyTuple_SET_ITEM(all, i, Py_NewRef(returned[i]));
  return all;
}

// The call already has the options of a prepared one, or none.
PyObject* run(size_t number, PyObject* const* args, Arguments& arguments, Call& call, bool prepared) {
  const Op& op = ops::all()[number];
  if (!(prepared ? ops::read_tensors(op, arguments, call) : ops::parse(op, arguments, call))) {
    return arguments.explain(call.error) == Arguments::Way::kFailed ? nullptr : Py_NewRef(Py_None);
  }
  Owned made[4], scratch;
  void* stream = nullptr;
  if (call.device_type == kCuda && !on_current_device(number, args, call, stream, scratch)) return Py_NewRef(Py_None);
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
  return returned(op, args, call, made);
}

// --- entries

PyObject* gradients[ops::kOpCount];

// What asks whether torch must see the call, and whether it needs a gradient (way() of pyfold/ops/_autograd.py says
// why).
PyObject* gated(size_t number, PyObject* const* args, Call& call, bool prepared) {
  if (watched()) Py_RETURN_NONE;
  Arguments arguments(ops::all()[number], args, prepared);
  switch (arguments.way()) {
    case Arguments::Way::kRun:
      return run(number, args, arguments, call, prepared);
    case Arguments::Way::kGradient:
      if (gradients[number] == nullptr) Py_RETURN_NONE;
      return PyObject_Vectorcall(gradients[number], args, ops::all()[number].operands.size(), nullptr);
    case Arguments::Way::kDispatch:
      Py_RETURN_NONE;
    case Arguments::Way::kFailed:
      break;
  }
  return nullptr;
}

PyObject* check_count(const Op& op, Py_ssize_t count) {
  if (count == static_cast<Py_ssize_t>(op.operands.size())) return Py_None;
  std::string names;
  for (const Operand& operand : op.operands) names += (names.empty() ? "" : ", ") + std::string(operand.name);
  return PyErr_Format(PyExc_TypeError, "%s takes %s", op.name, names.c_str());
}

constexpr size_t kMostOperands = 24;

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

// Null, and an error, where there is no such op.
const Op* op_of(PyObject* name) {
  for (const Op& op : ops::all()) {
    if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, op.name) == 0) return &op;
  }
  return PyErr_Format(PyExc_ValueError, "there is no op %R", name), nullptr;
}

// --- prepared calls: an op whose options were read once, and some operands that stay

struct Prepared {
  PyObject_HEAD vectorcallfunc call;
  size_t number;
  int64_t ndim, dim, size;  // of the first operand: its dimensions, and the size of one; negative: any
  PyObject* operands;       // a tuple, with ... for those that each call gives
  Call* options;
};

PyObject* call_prepared(PyObject* self, PyObject* const* given, size_t flags, PyObject* names) {
  const Prepared& prepared = *reinterpret_cast<Prepared*>(self);
  const Op& op = ops::all()[prepared.number];
  const Py_ssize_t count = PyVectorcall_NARGS(flags), named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  static PyObject* const nothing = PyTuple_New(0);
  PyObject* args[kMostOperands];
  Py_ssize_t used = 0;  // of what is given
  for (size_t i = 0; i < op.operands.size(); ++i) {
    args[i] = PyTuple_GET_ITEM(prepared.operands, i);
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
  Call call(*prepared.options);
  return gated(prepared.number, args, call, true);
}

void free_prepared(PyObject* self) {
  Prepared& prepared = *reinterpret_cast<Prepared*>(self);
  PyTypeObject* type = Py_TYPE(self);
  Py_XDECREF(prepared.operands);
  delete prepared.options;
  PyObject_Free(self);
  Py_DECREF(type);
}

PyTypeObject* prepared_type() {
  static PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Prepared, call), READONLY, nullptr},
                                  {nullptr, 0, 0, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(free_prepared)},
                                {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_members, members},
                                {0, nullptr}};
  static PyType_Spec spec = {"pyfold._C.Prepared", sizeof(Prepared), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             slots};
  static auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type;
}

PyObject* prepare(PyObject*, PyObject* const* args, Py_ssize_t count) {
  constexpr Py_ssize_t kFirst = 4;
  int64_t shape[3];
  bool fits = count >= kFirst;
  for (int i = 0; fits && i < 3; ++i) fits = as_integer(args[1 + i], shape[i]);
  if (!fits) return PyErr_Format(PyExc_TypeError, "prepare takes op, ndim, dim, size, operands");
  const Op* op = op_of(args[0]);
  if (op == nullptr || check_count(*op, count - kFirst) == nullptr) return nullptr;
  if (torch.api == nullptr) Py_RETURN_NONE;
  Owned owned(reinterpret_cast<PyObject*>(PyObject_New(Prepared, prepared_type())));
  if (owned == nullptr) return nullptr;
  Prepared& made = *reinterpret_cast<Prepared*>(owned.get());
  const size_t number = op - ops::all().data();
  made = {made.ob_base, call_prepared, number, shape[0], shape[1], shape[2], PyTuple_New(count - kFirst), new Call()};
  for (Py_ssize_t i = kFirst; i < count; ++i) PyTuple_SET_ITEM(made.operands, i - kFirst, Py_NewRef(args[i]));
  Arguments arguments(*op, args + kFirst);
  if (ops::read_options(*op, arguments, *made.options)) return owned.release();
  return arguments.explain(made.options->error) == Arguments::Way::kFailed ? nullptr : Py_NewRef(Py_None);
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
PyObject* unit_planes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "unit_planes takes normal, offset, dtype");
  TensorRef normal, offset, out;
  double number = 0;
  const bool fits = !watched() && is_tensor(args[0]) && values(args[0], 2, number, normal) &&
                    values(args[1], 1, number, offset) && !requires_grad(args[0]) &&
                    !(is_tensor(args[1]) && requires_grad(args[1])) && unit_planes_fit(normal, offset);
  if (!fits) Py_RETURN_NONE;
  const bool wide = args[2] == PyTuple_GET_ITEM(torch.dtypes, static_cast<int>(Element::kFloat64));
  const int64_t size = normal.numel() + normal.numel() / std::max<int64_t>(normal.sizes[normal.ndim - 1], 1);
  Owned made(make({wide ? Element::kFloat64 : Element::kFloat32, 1, -1, -1, {size}, {1}, nullptr}, args, kCpu));
  if (made == nullptr || !describe(made.get(), out)) return nullptr;
  pyfold::unit_planes(normal, offset, out);
  return made.release();
}

PyObject* differentiate(PyObject*, PyObject* const* args, Py_ssize_t count) {
  const Op* op = count == 2 ? op_of(args[0]) : nullptr;
  if (op == nullptr)
    return PyErr_Occurred()
               ? nullptr
               : PyErr_Format(PyExc_TypeError, "differentiate takes an op's name and what runs it with a gradient");
  gradients[op - ops::all().data()] = Py_NewRef(args[1]);
  Py_RETURN_NONE;
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

PyObject* read_counts(PyObject*, PyObject*) {
  const ops::ReadCounts& counts = ops::read_counts();
  return Py_BuildValue("(LL)", (long long)counts.options.load(), (long long)counts.tensors.load());
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
      {"unit_planes", fast<unit_planes>(), METH_FASTCALL,
       "The parameters of a program of planes, where torch need not look."},
      {"prepare", fast<prepare>(), METH_FASTCALL,
       "A call of an op whose options are read once: takes its name, ndim and the size in dim that the first operand "
       "has\n"
       "(-1: any), and the operands, ... for those that each call gives, the first in order and others by name. A "
       "call\n"
       "runs like _C.<op>; None where torch must see it, the shape is another, or something is wrong."},
      {"read_counts", read_counts, METH_NOARGS, "How often this process read (options, tensors) of calls."},
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

#include <string.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "folds/program.h"
#include "python/direct.h"
#include "python/direct_folds.h"

namespace pyfold {
namespace {

// --- arguments of the ops, from Python objects

bool number(PyObject* object, double& out) {
  if (PyFloat_CheckExact(object)) return out = PyFloat_AS_DOUBLE(object), true;
  int64_t whole;
  if (!integer(object, whole)) return false;
  return out = static_cast<double>(whole), true;
}

bool is_text(PyObject* object, const char* text) {
  return PyUnicode_CheckExact(object) && PyUnicode_CompareWithASCIIString(object, text) == 0;
}

bool lay_out(const Operand& given, FoldLayout& layout, int64_t components, PyObject* dim, PyObject* pairing,
             PyObject* groups) {
  int64_t channels, group_count;
  if (!integer(dim, channels) || !integer(groups, group_count) || group_count != 1) return false;
  layout.components = static_cast<int>(components);
  layout.halves = is_text(pairing, "halves");
  return lay_out(given, layout, channels);
}

// So many values of the accumulation type, or None.
bool parameter(PyObject* object, DType dtype, int64_t count, const void*& out) {
  if (object == Py_None) return true;
  Operand given;
  DType type;
  if (!read(object, given) || !given.floating(type) || given.numel != count) return false;
  if (type != (dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32)) return false;
  out = given.data;
  return true;
}

// So many bytes; an empty tensor says that there are none.
bool bits(PyObject* object, int64_t count, uint8_t*& out, bool optional = false) {
  Operand given;
  if (!describe(object, given) || given.code != kDLUInt || given.bits != 8) return false;
  if (optional && given.numel == 0) return true;
  if (!in_order(given) || !readable(object, given) || given.numel != count) return false;
  out = static_cast<uint8_t*>(given.data);
  return true;
}

// A tensor of so few bytes, [1, count], that stays: an empty_like of it takes half the time of an empty with a shape
// and a dtype. A new reference, or null.
PyObject* kept_bits(int64_t count) {
  constexpr size_t kMostKept = 64;
  static auto* const kept = new std::unordered_map<int64_t, PyObject*>;
  const auto found = kept->find(count);
  if (found != kept->end()) return Py_NewRef(found->second);
  Result made;
  PyObject* shape = Py_BuildValue("(iL)", 1, static_cast<long long>(count));
  made.empty(shape, torch.bytes);
  Py_DECREF(shape);
  if (made.get() == nullptr) return nullptr;
  std::unordered_map<int64_t, PyObject*> old;  // freeing a tensor may let another thread in here
  if (kept->size() >= kMostKept) old.swap(*kept);
  if (kept->try_emplace(count, made.get()).second) Py_INCREF(made.get());
  for (const auto& each : old) Py_DECREF(each.second);
  return made.release();
}

// So many bytes, [1, count].
bool new_bits(Result& result, int64_t count, uint8_t*& out) {
  constexpr int64_t kFew = 4096;
  PyObject* like = count <= kFew ? kept_bits(count) : nullptr;
  if (like != nullptr) {
    result.given_or_like(Py_None, like);
    Py_DECREF(like);
  } else {
    PyObject* shape = Py_BuildValue("(iL)", 1, static_cast<long long>(count));
    result.empty(shape, torch.bytes);
    Py_DECREF(shape);
  }
  return result.get() != nullptr && bits(result.get(), count, out);
}

// A new tensor like another, which has the same memory order.
bool new_like(Result& result, PyObject* like, const Operand& of, void*& out) {
  Operand made;
  if (!result.given_or_like(Py_None, like) || !describe(result.get(), made) || !made.same_shape(of)) return false;
  for (int d = 0; d < of.ndim; ++d) {
    if (of.shape[d] != 1 && made.strides[d] != of.strides[d]) return false;
  }
  out = made.data;
  return true;
}

// --- one reflection: x or a gradient, with what describes the fold

struct Reflection {
  FoldArgs args;
  Operand in;

  bool begin(PyObject* object, const Operand& given, PyObject* angle, PyObject* kind, PyObject* dim, PyObject* pairing,
             PyObject* gain, PyObject* groups) {
    in = given;
    if (!readable(object, in) || !in.floating(args.dtype)) return false;
    if (is_text(kind, "abs")) {
      args.kind = FoldKind::kAbs;
    } else if (is_text(kind, "maxmin")) {
      args.kind = FoldKind::kMaxMin;
    } else if (is_text(kind, "householder") && angle != Py_None) {
      args.kind = FoldKind::kHouseholder;
    } else {
      return false;
    }
    if (!lay_out(in, args.layout, args.kind == FoldKind::kAbs ? 1 : 2, dim, pairing, groups)) return false;
    args.in = in.data;
    return number(gain, args.gain) && parameter(angle, args.dtype, args.layout.lines(), args.angle);
  }

  bool run(cpu::FoldKernel kernel) {
    return launch(cpu::launchers().fold, in.numel, [&](auto fold) { fold(args, kernel); });
  }
};

}  // namespace

bool reflect(PyObject* x, const Operand& given, PyObject* bias, PyObject* angle, PyObject* const* rest, bool remember,
             Made& made) {
  Reflection call;
  FoldArgs& args = call.args;
  if (!call.begin(x, given, angle, rest[0], rest[1], rest[2], rest[3], rest[5])) return false;
  if (!number(rest[4], args.clamp) || !parameter(bias, args.dtype, args.layout.channels, args.bias)) return false;
  if (!new_like(made.y, x, call.in, args.out)) return false;
  if (remember) {
    const int64_t bytes = args.layout.bytes_per_group();
    if (!new_bits(made.bits, bytes, args.bits)) return false;
    if (args.clamp > 0 && !new_bits(made.clamped, args.layout.components * bytes, args.clamped)) return false;
  }
  return call.run(cpu::fold_kernels().forward);
}

namespace {}  // namespace

bool reflect_gradient(PyObject* grad, PyObject* bits_of, PyObject* clamped, PyObject* angle, PyObject* const* rest,
                      PyObject* groups, bool transpose, Result& out) {
  Operand given;
  Reflection call;
  if (!describe(grad, given) || !call.begin(grad, given, angle, rest[0], rest[1], rest[2], rest[3], groups))
    return false;
  const int64_t bytes = call.args.layout.bytes_per_group();
  if (!bits(bits_of, bytes, call.args.bits)) return false;
  if (!bits(clamped, call.args.layout.components * bytes, call.args.clamped, true)) return false;
  if (!new_like(out, grad, call.in, call.args.out)) return false;
  call.args.transpose = transpose;
  return call.run(cpu::fold_kernels().backward);
}

namespace {

PyObject* fold_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 10) {
    return PyErr_Format(PyExc_TypeError,
                        "fold_backward takes grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose");
  }
  Result out;
  if (watched() || !reflect_gradient(args[0], args[1], args[2], args[3], args + 4, args[8], args[9] == Py_True, out)) {
    Py_RETURN_NONE;
  }
  return out.release();
}

// --- programs

struct Sequence {
  SequenceArgs args;
  Operand in;

  // rest: program, constants, rows, planes, dim, pairing, groups.
  bool begin(PyObject* object, const Operand& given, PyObject* parameters, PyObject* const* rest) {
    in = given;
    int64_t rows;
    if (!readable(object, in) || !in.floating(args.dtype) || !integer(rest[2], rows)) return false;
    if (rows < 1 || rows > kMaxRows || !program(rest[0], rest[1], parameters, static_cast<int>(rows))) return false;
    if (!lay_out(in, args.in_layout, rows, rest[4], rest[5], rest[6])) return false;
    args.out_layout = args.in_layout;
    args.in = in.data;
    return true;
  }

  // What widens goes the long way.
  bool program(PyObject* numbers, PyObject* values, PyObject* parameters, int rows) {
    int64_t program[5 * kMaxInstructions];
    double constants[kMaxConstants];
    if (!PyTuple_CheckExact(numbers) || PyTuple_GET_SIZE(numbers) > 5 * kMaxInstructions) return false;
    if (!PyTuple_CheckExact(values) || PyTuple_GET_SIZE(values) > kMaxConstants) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(numbers); ++i) {
      if (!integer(PyTuple_GET_ITEM(numbers, i), program[i])) return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(values); ++i) {
      if (!number(PyTuple_GET_ITEM(values, i), constants[i])) return false;
    }
    Operand of_parameters;
    of_parameters.numel = 0;
    if (parameters != Py_None) {
      if (!read(parameters, of_parameters)) return false;
      if (!parameter(parameters, args.dtype, of_parameters.numel, args.parameters)) return false;
    }
    const int narrow = rows;
    return sequence_program(args, program, PyTuple_GET_SIZE(numbers), constants, PyTuple_GET_SIZE(values),
                            of_parameters.numel, rows) == nullptr &&
           rows == narrow;
  }

  bool run() {
    return launch(cpu::launchers().sequence, in.numel, [&](auto sequence) { sequence(args); });
  }
};

}  // namespace

bool run_sequence(PyObject* x, const Operand& given, PyObject* bias, PyObject* parameters, PyObject* const* rest,
                  bool remember, Made& made) {
  Sequence call;
  SequenceArgs& args = call.args;
  if (!call.begin(x, given, parameters, rest)) return false;
  if (!parameter(bias, args.dtype, args.in_layout.channels, args.bias)) return false;
  if (!new_like(made.y, x, call.in, args.out)) return false;
  if (remember && !new_bits(made.bits, args.planes * args.in_layout.bytes_per_group(), args.bits)) return false;
  return call.run();
}

namespace {}  // namespace

bool apply_sequence(PyObject* value, PyObject* bits_of, PyObject* parameters, PyObject* const* rest, SequenceMode mode,
                    Result& out) {
  Operand given;
  Sequence call;
  if (!describe(value, given) || !call.begin(value, given, parameters, rest)) return false;
  if (!bits(bits_of, call.args.planes * call.args.in_layout.bytes_per_group(), call.args.bits)) return false;
  if (!new_like(out, value, call.in, call.args.out)) return false;
  call.args.mode = mode;
  return call.run();
}

namespace {

PyObject* fold_sequence_apply(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 11) {
    return PyErr_Format(PyExc_TypeError,
                        "fold_sequence_apply takes value, bits, parameters, program, constants, rows, planes, dim, "
                        "pairing, groups, direction");
  }
  Result out;
  const bool adjoint = is_text(args[10], "adjoint");
  if (watched() || !(adjoint || is_text(args[10], "tangent"))) Py_RETURN_NONE;
  const SequenceMode mode = adjoint ? SequenceMode::kAdjoint : SequenceMode::kTangent;
  if (!apply_sequence(args[0], args[1], args[2], args + 3, mode, out)) Py_RETURN_NONE;
  return out.release();
}

// --- the two forwards with their bits, as autograd's functions call them

using Forward = bool (*)(PyObject*, const Operand&, PyObject*, PyObject*, PyObject* const*, bool, Made&);

PyObject* or_nothing(Result& result) { return result.get() != nullptr ? result.release() : Py_NewRef(torch.nothing); }

template <Forward forward, int kCount, int kOutputs>
PyObject* forward_with_bits(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != kCount) {
    return PyErr_Format(PyExc_TypeError,
                        kOutputs == 3
                            ? "fold_forward takes x, bias, angle, kind, dim, pairing, gain, clamp, groups, "
                              "remember"
                            : "fold_sequence takes x, bias, parameters, program, constants, rows, planes, dim, "
                              "pairing, groups, remember");
  }
  Operand given;
  Made made;
  const bool remember = args[kCount - 1] == Py_True;
  if (watched() || !describe(args[0], given)) Py_RETURN_NONE;
  if (!forward(args[0], given, args[1], args[2], args + 3, remember, made)) Py_RETURN_NONE;
  PyObject* outputs = PyTuple_New(kOutputs);
  PyTuple_SET_ITEM(outputs, 0, made.y.release());
  if (kOutputs == 3) {
    PyTuple_SET_ITEM(outputs, 1, or_nothing(made.bits));
    PyTuple_SET_ITEM(outputs, 2, or_nothing(made.clamped));
  } else {
    PyTuple_SET_ITEM(outputs, 1, remember ? made.bits.release() : Py_NewRef(Py_None));
  }
  return outputs;
}

}  // namespace

void add_direct_folds(PyObject* module) {
  static PyMethodDef methods[] = {
      {"fold_forward", fast<forward_with_bits<reflect, 10, 3>>(), METH_FASTCALL,
       "The op fold of a plain call, or None."},
      {"fold_backward", fast<fold_backward>(), METH_FASTCALL, "The op of this name of a plain call, or None."},
      {"fold_sequence", fast<forward_with_bits<run_sequence, 11, 2>>(), METH_FASTCALL,
       "The op of this name of a plain call, with its results, or None."},
      {"fold_sequence_apply", fast<fold_sequence_apply>(), METH_FASTCALL,
       "The op of this name of a plain call, or None."},
      {nullptr, nullptr, 0, nullptr},
  };
  PyModule_AddFunctions(module, methods);
}

}  // namespace pyfold

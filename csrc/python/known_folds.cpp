#include <string.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "python/direct.h"
#include "python/direct_folds.h"

namespace pyfold {
namespace {

// --- pyfold.fold: calls whose arguments were checked before are known again by all that the checks look at

// What a call is known by: tensors by dtype, device and shape; strings by their interned object, which an entry holds.
class Key {
 public:
  Key() = default;
  Key(const Key&) = delete;
  ~Key() {
    for (int i = 0; i < text_count; ++i) Py_DECREF(texts[i]);
  }

  // args: x, bias, kind, gain, clamp, dim, pairing, parameters.
  bool take(PyObject* const* args) {
    int64_t dim;
    if (!describe(args[0], x) || !integer(args[5], dim)) return false;
    add_type(x);
    add(x.ndim);
    add(dim);
    add(dim >= -x.ndim && dim < x.ndim ? x.shape[dim < 0 ? dim + x.ndim : dim] : -1);
    if (!add_text(args[2]) || !add_value(args[3]) || !add_value(args[4]) || !add_text(args[6])) return false;
    if (args[1] == Py_None ? !add_value(args[1]) : !add_tensor(args[1])) return false;
    if (!PyDict_CheckExact(args[7])) return false;
    PyObject *name, *value;
    for (Py_ssize_t at = 0; PyDict_Next(args[7], &at, &name, &value);) {
      if (!add_text(name)) return false;
      if (!is_tensor(value)) {
        if (!add_value(value)) return false;
      } else {
        if (tensor_count == kTensors || !add_tensor(value)) return false;
        tensors[tensor_count++] = value;
      }
    }
    return count_ <= kWords;
  }
  std::string_view bytes() const { return {reinterpret_cast<const char*>(words_), count_ * sizeof(int64_t)}; }

  static constexpr int kTexts = 8, kTensors = 2;
  Operand x;
  PyObject* texts[kTexts];
  int text_count = 0;
  PyObject* tensors[kTensors];  // those among the parameters
  int tensor_count = 0;

 private:
  static constexpr int kWords = 48;

  void add(int64_t word) {
    if (count_ < kWords) words_[count_] = word;
    ++count_;
  }
  void add_type(const Operand& given) {
    add(int64_t{given.code} << 8 | given.bits);
    add(int64_t{given.device_type} << 32 | static_cast<uint32_t>(given.device_id));
  }
  bool add_tensor(PyObject* object) {
    Operand given;
    if (!describe(object, given) || given.ndim > 2) return false;
    add_type(given);
    add(given.ndim);
    for (int d = 0; d < given.ndim; ++d) add(given.shape[d]);
    return true;
  }
  bool add_value(PyObject* object) {
    int64_t word = 0;
    if (object == Py_None) return add(0), true;
    if (PyFloat_CheckExact(object)) {
      const double value = PyFloat_AS_DOUBLE(object);
      memcpy(&word, &value, sizeof word);
      return add(1), add(word), true;
    }
    return integer(object, word) && (add(2), add(word), true);
  }
  bool add_text(PyObject* object) {
    if (!PyUnicode_CheckExact(object) || text_count == kTexts) return false;
    Py_INCREF(object);
    PyUnicode_InternInPlace(&object);
    texts[text_count++] = object;
    return add(static_cast<int64_t>(reinterpret_cast<intptr_t>(object))), true;
  }

  int64_t words_[kWords];
  size_t count_ = 0;
};

// A program made from tensors is known by their values too, so these must be few.
constexpr size_t kMostContent = 1 << 14;

// The values of the tensors among the parameters. Reading them may let another thread run; looking at them does not.
struct Content {
  Operand tensors[Key::kTensors];
  int count;
  bool fixed = true;  // they can be read, are few, and do not learn

  explicit Content(const Key& key) : count(key.tensor_count) {
    size_t total = 0;
    for (int i = 0; i < count && fixed; ++i) {
      fixed = read(key.tensors[i], tensors[i]) && !requires_grad(key.tensors[i]);
      if (fixed) total += bytes(i);
    }
    fixed = fixed && total <= kMostContent;
  }
  size_t bytes(int i) const { return static_cast<size_t>(tensors[i].numel) * tensors[i].bits / 8; }
  std::string copy() const {
    std::string all;
    for (int i = 0; i < count; ++i) all.append(static_cast<const char*>(tensors[i].data), bytes(i));
    return all;
  }
  // The key, and with it the shapes, are the same.
  bool equals(const std::string& other) const {
    size_t at = 0;
    for (int i = 0; i < count; at += bytes(i++)) {
      if (memcmp(other.data() + at, tensors[i].data, bytes(i)) != 0) return false;
    }
    return true;
  }
};

// What a call comes to, as a Python tuple.
struct Plan {
  PyObject* tuple;

  // Whether the kernels of one reflection serve it, the parameters of its program, the arguments of its op after the
  // tensors.
  bool reflects() const { return PyTuple_GET_ITEM(tuple, 0) == Py_True; }
  PyObject* parameters() const { return PyTuple_GET_ITEM(tuple, 1); }
  PyObject* const* rest() const { return PySequence_Fast_ITEMS(PyTuple_GET_ITEM(tuple, 2)); }
  Py_ssize_t rest_count() const { return PyTuple_GET_SIZE(PyTuple_GET_ITEM(tuple, 2)); }
  // The op for what is not plain, op(x, bias, third, *rest), and the function of autograd, recorded(x, bias, third,
  // plan).
  PyObject* op() const { return PyTuple_GET_ITEM(tuple, 3); }
  PyObject* recorded() const { return PyTuple_GET_ITEM(tuple, 4); }

  bool valid() const {
    return PyTuple_CheckExact(tuple) && PyTuple_GET_SIZE(tuple) == 5 &&
           PyTuple_CheckExact(PyTuple_GET_ITEM(tuple, 2)) && rest_count() == (reflects() ? 7 : 8);
  }
  bool direct(PyObject* x, const Operand& given, PyObject* bias, PyObject* third, bool remember, Made& made) const {
    return (reflects() ? reflect : run_sequence)(x, given, bias, third, rest(), remember, made);
  }
  // A tuple of the op's results.
  PyObject* dispatched(PyObject* x, PyObject* bias, PyObject* third, bool remember) const {
    PyObject* args[3 + 8] = {x, bias, third};
    std::copy(rest(), rest() + rest_count(), args + 3);
    args[3 + rest_count() - 1] = remember ? Py_True : Py_False;
    return PyObject_Vectorcall(op(), args, 3 + rest_count(), nullptr);
  }
};

// The first of a tuple, which is given up.
PyObject* first_of(PyObject* results) {
  if (results == nullptr) return nullptr;
  PyObject* first = Py_NewRef(PyTuple_GET_ITEM(results, 0));
  Py_DECREF(results);
  return first;
}

struct Entry {
  PyObject* plan = nullptr;
  std::vector<PyObject*> texts;
  std::string content;

  void free() {
    Py_DECREF(plan);
    for (PyObject* text : texts) Py_DECREF(text);
  }
};

struct Hash {
  using is_transparent = void;
  size_t operator()(std::string_view bytes) const { return std::hash<std::string_view>{}(bytes); }
};
using Entries = std::unordered_map<std::string, Entry, Hash, std::equal_to<>>;

Entries& entries() {
  static auto* const all = new Entries;  // never freed: the interpreter may be gone by then
  return *all;
}

constexpr size_t kMostEntries = 1024;

PyObject* remember_fold(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 9 || !Plan{args[8]}.valid()) {
    return PyErr_Format(PyExc_TypeError,
                        "remember_fold takes x, bias, kind, gain, clamp, dim, pairing, parameters, plan; a plan is "
                        "(reflects, parameters, rest, op, recorded)");
  }
  Key key;
  if (torch.tensor == nullptr || !key.take(args)) Py_RETURN_FALSE;
  Entry entry{args[8], {}, {}};
  if (!Plan{args[8]}.reflects()) {
    const Content content(key);
    if (!content.fixed) Py_RETURN_FALSE;
    entry.content = content.copy();
  }
  entry.texts.assign(key.texts, key.texts + key.text_count);
  for (PyObject* text : entry.texts) Py_INCREF(text);
  Py_INCREF(entry.plan);
  // What is forgotten is freed in the end, because freeing a tensor may let another thread in here.
  Entries old;
  if (entries().size() >= kMostEntries) old.swap(entries());
  const auto [at, is_new] = entries().try_emplace(std::string(key.bytes()));
  std::swap(at->second, entry);
  if (!is_new) entry.free();
  for (auto& each : old) each.second.free();
  Py_RETURN_TRUE;
}

// A call that was checked before, or None: at once where it is plain, and through torch where it needs a gradient or is
// on another device.
PyObject* fold(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 8) {
    return PyErr_Format(PyExc_TypeError, "fold takes x, bias, kind, gain, clamp, dim, pairing, parameters");
  }
  Key key;
  FoldLayout whole;
  if (watched() || !key.take(args) || !lay_out(key.x, whole, 0)) Py_RETURN_NONE;
  const Content content(key);
  const auto found = entries().find(key.bytes());
  if (found == entries().end()) Py_RETURN_NONE;
  const Plan plan{found->second.plan};
  if (!plan.reflects() && !(content.fixed && content.equals(found->second.content))) Py_RETURN_NONE;
  Py_INCREF(plan.tuple);  // another thread may forget it
  PyObject *x = args[0], *bias = args[1];
  PyObject* third = !plan.reflects() ? plan.parameters() : key.tensor_count != 0 ? key.tensors[0] : Py_None;
  const auto learns = [](PyObject* tensor) { return tensor != Py_None && requires_grad(tensor); };
  PyObject* result;
  Made made;
  if (grad_enabled() && (learns(x) || learns(bias) || learns(third))) {
    PyObject* given[] = {x, bias, third, plan.tuple};
    result = PyObject_Vectorcall(plan.recorded(), given, 4, nullptr);
  } else if (plan.direct(x, key.x, bias, third, false, made)) {
    result = made.y.release();
  } else {
    result = first_of(plan.dispatched(x, bias, third, false));
  }
  Py_DECREF(plan.tuple);
  return result;
}

// The forward of an autograd.Function for a call that fold knows: ctx, x, bias, third, plan. It keeps what the same
// call keeps that is new, since checkpointing compares the two, and sets ctx.call: plan, strides of y where they are
// not the usual, bias.
PyObject* record_fold(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5 || !Plan{args[4]}.valid()) {
    return PyErr_Format(PyExc_TypeError, "record_fold takes ctx, x, bias, third, plan");
  }
  static PyObject* const save = PyUnicode_InternFromString("save_for_backward");
  static PyObject* const attribute = PyUnicode_InternFromString("call");
  static PyObject* const stride = PyUnicode_InternFromString("stride");
  static PyObject* const dtype = PyUnicode_InternFromString("dtype");
  PyObject *ctx = args[0], *x = args[1], *bias = args[2], *third = args[3];
  const Plan plan{args[4]};
  Operand given;
  Made made;
  if (!describe(x, given) || !plan.direct(x, given, bias, third, true, made)) {
    PyObject* results = plan.dispatched(x, bias, third, true);
    if (results == nullptr) return nullptr;
    made.y.take(Py_NewRef(PyTuple_GET_ITEM(results, 0)));
    made.bits.take(Py_NewRef(PyTuple_GET_ITEM(results, 1)));
    if (plan.reflects()) made.clamped.take(Py_NewRef(PyTuple_GET_ITEM(results, 2)));
    Py_DECREF(results);
  }
  PyObject* none = Py_None;
  PyObject* clamped = made.clamped.get() != nullptr ? made.clamped.get() : torch.nothing;
  PyObject* y = plan.reflects() && third != none && requires_grad(third) ? made.y.get() : none;
  PyObject* reflection[] = {ctx, made.bits.get(), clamped, third, y};
  PyObject* program[] = {ctx, made.bits.get(), third};
  PyObject* kept = plan.reflects() ? PyObject_VectorcallMethod(save, reflection, 5, nullptr)
                                   : PyObject_VectorcallMethod(save, program, 3, nullptr);
  if (kept == nullptr) return nullptr;
  Py_DECREF(kept);
  PyObject* strides = in_order(given) ? Py_NewRef(none) : PyObject_CallMethodNoArgs(made.y.get(), stride);
  PyObject* of_bias = bias == none ? Py_NewRef(none) : PyObject_GetAttr(bias, dtype);
  PyObject* call = strides != nullptr && of_bias != nullptr ? PyTuple_Pack(3, plan.tuple, strides, of_bias) : nullptr;
  Py_XDECREF(strides);
  Py_XDECREF(of_bias);
  if (call == nullptr) return nullptr;
  const int set = PyObject_SetAttr(ctx, attribute, call);
  Py_DECREF(call);
  return set == 0 ? made.y.release() : nullptr;
}

// Whether a tensor's strides are those of a tuple; None: those of a contiguous tensor.
bool has_strides(PyObject* tensor, PyObject* strides) {
  Operand given;
  if (!describe(tensor, given)) return false;
  if (strides == Py_None) return in_order(given);
  for (int d = 0; d < given.ndim; ++d) {
    int64_t stride;
    if (!integer(PyTuple_GET_ITEM(strides, d), stride)) return false;
    if (given.shape[d] != 1 && given.strides[d] != stride) return false;
  }
  return true;
}

// The gradient of x alone in a function that record_fold ran, from ctx and the gradient of y; or None.
PyObject* recorded_gradient(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "recorded_gradient takes ctx, grad");
  static PyObject* const attributes[] = {PyUnicode_InternFromString("needs_input_grad"),
                                         PyUnicode_InternFromString("call"),
                                         PyUnicode_InternFromString("saved_tensors")};
  PyObject *ctx = args[0], *grad = args[1];
  if (watched()) Py_RETURN_NONE;
  PyObject* found[3] = {};
  for (int i = 0; i < 3; ++i) {
    found[i] = PyObject_GetAttr(ctx, attributes[i]);
    if (found[i] == nullptr || !PyTuple_CheckExact(found[i])) {
      for (PyObject* each : found) Py_XDECREF(each);
      if (PyErr_Occurred() != nullptr) return nullptr;
      Py_RETURN_NONE;
    }
  }
  const auto item = [&](int tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(found[tuple], i); };
  const Plan plan{item(1, 0)};
  PyObject* third = item(2, plan.reflects() ? 2 : 1);
  Result out;
  bool plain = item(0, 0) == Py_True && item(0, 1) == Py_False && item(0, 2) == Py_False;
  plain = plain && has_strides(grad, item(1, 1)) && !(grad_enabled() && requires_grad(grad));
  if (plain && plan.reflects()) {
    plain = reflect_gradient(grad, item(2, 0), item(2, 1), third, plan.rest(), plan.rest()[5], false, out);
  } else if (plain) {
    plain = apply_sequence(grad, item(2, 0), third, plan.rest(), SequenceMode::kAdjoint, out);
  }
  for (PyObject* each : found) Py_DECREF(each);
  return plain ? out.release() : Py_NewRef(Py_None);
}

}  // namespace

void add_known_folds(PyObject* module) {
  static PyMethodDef methods[] = {
      {"fold", fast<fold>(), METH_FASTCALL, "pyfold.fold of a call that was checked before, or None."},
      {"remember_fold", fast<remember_fold>(), METH_FASTCALL,
       "The plan of such calls; whether they can be known again."},
      {"record_fold", fast<record_fold>(), METH_FASTCALL, "The forward of their autograd.Function."},
      {"recorded_gradient", fast<recorded_gradient>(), METH_FASTCALL,
       "Its gradient of x alone in a plain call, or None."},
      {nullptr, nullptr, 0, nullptr},
  };
  PyModule_AddFunctions(module, methods);
}

}  // namespace pyfold

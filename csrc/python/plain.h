#pragma once

#include <Python.h>
#include <stdint.h>

#include <vector>

#include "cpu/launch.h"

#include "core/dtype.h"
#include "python/direct.h"

// What direct calls share: tensors read through DLPack's exchange API, and what has to be asked of torch before.
namespace pyfold {

// --- what is used of DLPack 1.x (github.com/dmlc/dlpack): torch >= 2.11 fills in a DLTensor without a Python call.

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major
  uint64_t byte_offset;
};

struct DLPackExchangeAPI {
  uint32_t major, minor;
  void* previous;
  void* allocator;
  void* from_object;
  void* to_object;
  int (*tensor_from_object)(void* object, DLTensor* out);
  void* current_stream;
};

constexpr int32_t kDLCPU = 1;
constexpr uint8_t kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4;

// --- torch, as far as a direct call asks it; filled in by use_torch, never freed.

struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  const DLPackExchangeAPI* api = nullptr;
  PyObject* grad_enabled = nullptr;
  PyObject* empty = nullptr;
  PyObject* empty_like = nullptr;
  PyObject* requires_grad = nullptr;
  PyObject* is_neg = nullptr;
  PyObject* dtype_name = nullptr;
  PyObject* bytes = nullptr;         // torch.uint8
  PyObject* nothing = nullptr;       // an empty tensor of it, [1, 0]
  PyObject* forward_mode = nullptr;  // the names of torch.autograd.forward_ad, and the one that counts its levels
  PyObject* current_level = nullptr;
  // Each says false, 0 or None where nothing watches or transforms the calls of ops.
  std::vector<PyObject*> watchers;
};

extern Torch torch;

// A new reference, or null with the error cleared.
inline PyObject* quiet(PyObject* result) {
  if (result == nullptr) PyErr_Clear();
  return result;
}

inline bool says_no(PyObject* result) {
  const bool no = result != nullptr && PyObject_IsTrue(result) == 0;
  Py_XDECREF(quiet(result));
  return no;
}

// Whether anything watches or transforms the calls of ops, or torch cannot be asked.
inline bool watched() {
  if (torch.tensor == nullptr) return true;
  // Tensors may carry tangents inside a level, which start at 0.
  PyObject* level = PyDict_GetItemWithError(torch.forward_mode, torch.current_level);
  if (level == nullptr || !PyLong_CheckExact(level) || PyLong_AsLong(level) >= 0) {
    PyErr_Clear();
    return true;
  }
  for (PyObject* watcher : torch.watchers) {
    if (!says_no(PyObject_CallNoArgs(watcher))) return true;
  }
  return false;
}

inline bool grad_enabled() { return !says_no(PyObject_CallNoArgs(torch.grad_enabled)); }
inline bool requires_grad(PyObject* tensor) { return !says_no(PyObject_GetAttr(tensor, torch.requires_grad)); }

// --- arguments. Each reader says whether the argument is as plain as a direct call wants it.

struct Operand : DLTensor {
  int64_t numel = 1;

  bool is_int64() const { return code == kDLInt && bits == 64; }
  bool is_float64() const { return code == kDLFloat && bits == 64; }
  bool floating(DType& dtype) const {
    if (code == kDLBfloat && bits == 16) {
      dtype = DType::kBFloat16;
    } else if (code == kDLFloat && (bits == 16 || bits == 32 || bits == 64)) {
      dtype = bits == 16 ? DType::kFloat16 : bits == 32 ? DType::kFloat32 : DType::kFloat64;
    } else {
      return false;
    }
    return true;
  }
  bool same_shape(const Operand& other) const {
    if (ndim != other.ndim) return false;
    for (int d = 0; d < ndim; ++d) {
      if (shape[d] != other.shape[d]) return false;
    }
    return true;
  }
};

inline bool is_tensor(PyObject* object) {
  return Py_TYPE(object) == torch.tensor || Py_TYPE(object) == torch.parameter;
}

// A tensor or a parameter on any device, with any strides.
inline bool describe(PyObject* object, Operand& out) {
  if (!is_tensor(object)) return false;
  if (torch.api->tensor_from_object(object, &out) != 0) {
    PyErr_Clear();
    return false;
  }
  out.numel = 1;
  for (int d = 0; d < out.ndim; ++d) out.numel *= out.shape[d];
  out.data = static_cast<char*>(out.data) + out.byte_offset;
  return out.lanes == 1;
}

// Whether the elements lie in order of their indices.
inline bool in_order(const Operand& given) {
  int64_t step = 1;
  for (int d = given.ndim - 1; d >= 0; --d) {
    if (given.strides != nullptr && given.shape[d] != 1 && given.strides[d] != step) return false;
    step *= given.shape[d];
  }
  return true;
}

// Whether the elements of a tensor without gaps can be read as they lie: on the CPU, some, and in memory at all, which
// the zeros that autograd makes up are not.
inline bool readable(PyObject* object, const Operand& given) {
  if (given.device_type != kDLCPU || given.numel == 0 || given.data == nullptr) return false;
  // A lazily negated tensor is half of a complex one, so it has gaps, unless it is a single number.
  return given.numel != 1 || given.code == kDLInt || says_no(PyObject_CallMethodNoArgs(object, torch.is_neg));
}

inline bool read(PyObject* object, Operand& out) {
  return describe(object, out) && in_order(out) && readable(object, out);
}

// A tensor of the call's own: what is given, or a new one like another.
class Result {
 public:
  Result() = default;
  Result(const Result&) = delete;
  ~Result() { Py_XDECREF(object_); }

  bool given_or_like(PyObject* given, PyObject* like, PyObject* dtype = nullptr) {
    if (given != Py_None) {
      object_ = given;
      Py_INCREF(given);
    } else if (dtype == nullptr || dtype == Py_None) {
      object_ = quiet(PyObject_CallOneArg(torch.empty_like, like));
    } else {
      PyObject* args[] = {like, dtype};
      object_ = quiet(PyObject_Vectorcall(torch.empty_like, args, 1, torch.dtype_name));
    }
    return object_ != nullptr;
  }
  bool empty(PyObject* shape, PyObject* dtype) {
    PyObject* args[] = {shape, dtype};
    object_ = quiet(PyObject_Vectorcall(torch.empty, args, 1, torch.dtype_name));
    return object_ != nullptr;
  }
  void take(PyObject* object) { object_ = object; }
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_ = nullptr;
};

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// From here on other Python threads may run meanwhile.
constexpr int64_t kLongWork = 32768;

// Whether body(launcher) was run; not without the launcher, or where it throws: the long way says what it is.
template <class Launcher, class Body>
bool launch(Launcher* launcher, int64_t numel, Body&& body) {
  if (launcher == nullptr) return false;
  PyThreadState* state = numel > kLongWork ? PyEval_SaveThread() : nullptr;
  bool done = true;
  try {
    body(launcher);
  } catch (...) {
    done = false;
  }
  if (state != nullptr) PyEval_RestoreThread(state);
  return done;
}

}  // namespace pyfold

#pragma once

#include <Python.h>
#include <stdint.h>

// What is asked of torch, by what pyfold/_torch_private.py gives; no symbol of torch is linked.
namespace pyfold {

// --- what is used of DLPack 1.x (github.com/dmlc/dlpack): torch >= 2.11 fills in a DLTensor without a Python call.

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct DLPackExchangeAPI {
  uint32_t major, minor;
  void* previous;
  void* allocator;
  void* from_object;
  void* to_object;
  int (*tensor_from_object)(void* object, DLTensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};

// --- torch's objects: references that are never dropped.

struct Torch {
  const DLPackExchangeAPI* api = nullptr;  // null: this torch cannot answer, so every call is dispatched
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* grad_enabled = nullptr;
  PyObject* empty_like = nullptr;
  PyObject* empty_strided = nullptr;
  PyObject* increment_version = nullptr;  // of a tuple of tensors
  PyObject* cuda_device = nullptr;        // the current one's number
  PyObject* dtypes = nullptr;             // a tuple, in the order of ops::Element
  PyObject* explain = nullptr;            // raises what is wrong with a call, or leaves it to the dispatcher
  PyObject* forward_mode = nullptr;       // the names of torch.autograd.forward_ad, one of which counts its levels
  PyObject* watchers = nullptr;           // each says false, 0 or None where nothing watches or transforms ops
};
inline Torch torch;

// Names of attributes and keywords, made once.
inline PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

inline bool says_no(PyObject* result) {
  const bool no = result != nullptr && PyObject_IsTrue(result) == 0;
  Py_XDECREF(result);
  PyErr_Clear();
  return no;
}

// Whether anything watches or transforms the calls of ops, or torch cannot be asked.
inline bool watched() {
  static PyObject* const current_level = interned("_current_level");
  if (torch.api == nullptr) return true;
  // Tensors may carry tangents inside a level, which start at 0.
  PyObject* level = PyDict_GetItem(torch.forward_mode, current_level);
  if (level == nullptr || !PyLong_CheckExact(level) || PyLong_AsLong(level) >= 0) return true;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch.watchers); ++i) {
    if (!says_no(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch.watchers, i)))) return true;
  }
  return false;
}

inline bool requires_grad(PyObject* tensor) {
  static PyObject* const name = interned("requires_grad");
  return !says_no(PyObject_GetAttr(tensor, name));
}

inline bool is_tensor(PyObject* object) {
  return Py_TYPE(object) == torch.tensor || Py_TYPE(object) == torch.parameter;
}

void add_calls(PyObject* module);

}  // namespace pyfold

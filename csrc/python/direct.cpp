#include "python/direct.h"

#include <math.h>
#include <stdint.h>

#include <vector>

#include "cpu/diffusion.h"

namespace pyfold {
namespace {

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
constexpr uint8_t kDLInt = 0, kDLFloat = 2, kDLBfloat = 4;

// --- torch, as far as a direct call asks it; filled in by use_torch, never freed.

struct Torch {
  PyTypeObject* tensor = nullptr;
  const DLPackExchangeAPI* api = nullptr;
  PyObject* grad_enabled = nullptr;
  PyObject* empty = nullptr;
  PyObject* empty_like = nullptr;
  PyObject* requires_grad = nullptr;
  PyObject* is_neg = nullptr;
  PyObject* dtype_name = nullptr;
  // Each says false, 0 or None where nothing watches or transforms the calls of ops.
  std::vector<PyObject*> watchers;
};

Torch torch;

// A new reference, or null with the error cleared.
PyObject* quiet(PyObject* result) {
  if (result == nullptr) PyErr_Clear();
  return result;
}

bool says_no(PyObject* result) {
  const bool no = result != nullptr && PyObject_IsTrue(result) == 0;
  Py_XDECREF(quiet(result));
  return no;
}

PyObject* use_torch(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count < 4)
    return PyErr_Format(PyExc_TypeError, "use_torch takes Tensor, is_grad_enabled, empty, empty_like, ...");
  PyObject* capsule = quiet(PyObject_GetAttrString(args[0], "__dlpack_c_exchange_api__"));
  if (capsule == nullptr) Py_RETURN_FALSE;
  const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (api == nullptr) PyErr_Clear();
  if (api == nullptr || api->major != 1 || api->tensor_from_object == nullptr) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(args[i]);
  torch.grad_enabled = args[1];
  torch.empty = args[2];
  torch.empty_like = args[3];
  torch.watchers.assign(args + 4, args + count);
  torch.requires_grad = PyUnicode_InternFromString("requires_grad");
  torch.is_neg = PyUnicode_InternFromString("is_neg");
  torch.dtype_name = Py_BuildValue("(s)", "dtype");
  torch.tensor = reinterpret_cast<PyTypeObject*>(args[0]);
  torch.api = api;
  Py_RETURN_TRUE;
}

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

bool read(PyObject* object, Operand& out) {
  if (Py_TYPE(object) != torch.tensor) return false;
  if (torch.api->tensor_from_object(object, &out) != 0) {
    PyErr_Clear();
    return false;
  }
  if (out.device_type != kDLCPU || out.lanes != 1) return false;
  out.numel = 1;
  for (int d = out.ndim - 1; d >= 0; --d) {
    if (out.strides != nullptr && out.shape[d] != 1 && out.strides[d] != out.numel) return false;
    out.numel *= out.shape[d];
  }
  if (out.numel == 0) return false;
  out.data = static_cast<char*>(out.data) + out.byte_offset;
  // A lazily negated tensor is half of a complex one, so it has gaps, unless it is a single number.
  return out.numel != 1 || out.code == kDLInt || says_no(PyObject_CallMethodNoArgs(object, torch.is_neg));
}

struct Call {
  bool grad_enabled = false;
  Operand like;
  DType state = DType::kFloat32;
  Geometry geometry;

  // Whether a call may go this way at all, and the tensor that the others are shaped like.
  bool begin(PyObject* object) {
    if (torch.tensor == nullptr) return false;
    for (PyObject* watcher : torch.watchers) {
      if (!says_no(PyObject_CallNoArgs(watcher))) return false;
    }
    grad_enabled = !says_no(PyObject_CallNoArgs(torch.grad_enabled));
    return object == nullptr || shaped_like(object);
  }

  bool shaped_like(PyObject* object) {
    if (!read(object, like) || !like.floating(state) || !no_gradient(object)) return false;
    if (like.ndim < 1 || like.ndim > kMaxDims + 1) return false;
    geometry = {like.shape[0], like.numel / like.shape[0], 1, {like.numel / like.shape[0]}};
    return true;
  }

  bool no_gradient(PyObject* object) const {
    return !grad_enabled || says_no(PyObject_GetAttr(object, torch.requires_grad));
  }

  void view(View& view, void* data, DType dtype) const {
    view.data = data;
    view.dtype = dtype;
    view.row_stride = geometry.numel;
    view.stride[0] = 1;
  }

  // lower: may be bfloat16 or float16 beside a float32 state. None leaves the view empty.
  bool operand(View& out, PyObject* object, bool lower = false) const {
    if (object == Py_None) return true;
    Operand given;
    DType dtype;
    if (!read(object, given) || !given.same_shape(like) || !given.floating(dtype) || !no_gradient(object)) return false;
    if (dtype != state && !(lower && state == DType::kFloat32 && dtype != DType::kFloat64)) return false;
    view(out, given.data, dtype);
    return true;
  }

  bool seeds(NoiseSource& noise, PyObject* object) const {
    Operand given;
    if (!read(object, given) || !given.is_int64() || given.ndim != 1 || given.numel != geometry.rows) return false;
    noise.seeds = static_cast<const int64_t*>(given.data);
    noise.window.stride[0] = 1;
    return true;
  }
};

bool counter(PyObject* object, uint32_t& out) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  out = static_cast<uint32_t>(value);
  return overflow == 0 && value >= 0 && value <= UINT32_MAX;
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
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_ = nullptr;
};

// --- the calls

PyObject* randn(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 6) return PyErr_Format(PyExc_TypeError, "randn takes seeds, shape, stream, step, dtype, out");
  Call call;
  RandnArgs kernel;
  Operand seeds;
  if (!call.begin(nullptr) || !read(args[0], seeds) || seeds.ndim != 1) Py_RETURN_NONE;
  if (!PyTuple_Check(args[1]) && !PyList_Check(args[1])) Py_RETURN_NONE;
  PyObject** sizes = PySequence_Fast_ITEMS(args[1]);
  const Py_ssize_t ndim = PySequence_Fast_GET_SIZE(args[1]);
  if (ndim > kMaxDims) Py_RETURN_NONE;
  int64_t shape[kMaxDims];
  for (Py_ssize_t d = 0; d < ndim; ++d) {
    int overflow;
    if (!PyLong_CheckExact(sizes[d])) Py_RETURN_NONE;
    shape[d] = PyLong_AsLongLongAndOverflow(sizes[d], &overflow);
    // What is empty or large goes the long way, and so does what is wrong.
    if (overflow != 0 || shape[d] < 1 || shape[d] > cpu::kNoiseGrain) Py_RETURN_NONE;
  }
  Result out;
  if (args[5] != Py_None) {
    if (!out.given_or_like(args[5], nullptr)) Py_RETURN_NONE;
  } else {
    PyObject* whole = PyTuple_New(ndim + 1);
    PyTuple_SET_ITEM(whole, 0, PyLong_FromLongLong(seeds.numel));
    for (Py_ssize_t d = 0; d < ndim; ++d) {
      Py_INCREF(sizes[d]);
      PyTuple_SET_ITEM(whole, d + 1, sizes[d]);
    }
    const bool made = out.empty(whole, args[4]);
    Py_DECREF(whole);
    if (!made) Py_RETURN_NONE;
  }
  if (!call.shaped_like(out.get()) || call.like.ndim != ndim + 1) Py_RETURN_NONE;
  for (Py_ssize_t d = 0; d < ndim; ++d) {
    if (call.like.shape[d + 1] != shape[d]) Py_RETURN_NONE;
  }
  if (!call.seeds(kernel.noise, args[0])) Py_RETURN_NONE;
  if (!counter(args[2], kernel.noise.stream) || !counter(args[3], kernel.step)) Py_RETURN_NONE;
  if (!cpu::for_one_thread(call.geometry, true)) Py_RETURN_NONE;
  kernel.geometry = call.geometry;
  call.view(kernel.out, call.like.data, call.state);
  cpu::diffusion_kernels().randn(kernel, 0, cpu::task_count(kernel.geometry));
  return out.release();
}

// alpha, sigma or the weight of every sample: a number, or a tensor of one or of each sample's.
struct Coefficient {
  double number = 0;
  const float* floats = nullptr;
  const double* doubles = nullptr;
  int64_t stride = 0;

  bool take(PyObject* object, int64_t samples) {
    if (PyFloat_CheckExact(object)) {
      number = PyFloat_AS_DOUBLE(object);
      return true;
    }
    if (PyLong_CheckExact(object)) {
      number = PyLong_AsDouble(object);
      if (PyErr_Occurred() == nullptr) return true;
      PyErr_Clear();
      return false;
    }
    Operand given;
    DType dtype;
    if (!read(object, given) || !given.floating(dtype)) return false;
    if (given.ndim > 1 || (given.numel != 1 && given.numel != samples)) return false;
    if (dtype == DType::kFloat32) {
      floats = static_cast<const float*>(given.data);
    } else if (dtype == DType::kFloat64) {
      doubles = static_cast<const double*>(given.data);
    } else {
      return false;
    }
    stride = given.numel == 1 ? 0 : 1;
    return true;
  }
  double operator()(int64_t sample) const {
    if (floats != nullptr) return floats[sample * stride];
    return doubles != nullptr ? doubles[sample * stride] : number;
  }
};

// The rows of a noising table. target: for x0 and for epsilon the factors of 1, alpha and sigma.
bool noising_rows(PyObject* alpha, PyObject* sigma, PyObject* weight, PyObject* target, int64_t samples, double* rows) {
  Coefficient of_alpha, of_sigma, of_weight;
  if (!of_alpha.take(alpha, samples) || !of_sigma.take(sigma, samples) || !of_weight.take(weight, samples))
    return false;
  double factor[6];
  if (!PyTuple_CheckExact(target) || PyTuple_GET_SIZE(target) != 6) return false;
  for (int i = 0; i < 6; ++i) {
    if (!PyFloat_CheckExact(PyTuple_GET_ITEM(target, i))) return false;
    factor[i] = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(target, i));
  }
  for (int64_t b = 0; b < samples; ++b) {
    double* row = rows + b * kNoisingColumns;
    const double a = of_alpha(b), s = of_sigma(b), w = of_weight(b);
    if (!isfinite(a) || !isfinite(s) || !isfinite(w)) return false;
    row[kNoising_alpha] = a;
    row[kNoising_sigma] = s;
    row[kNoising_target_x0] = factor[0] + factor[1] * a + factor[2] * s;
    row[kNoising_target_epsilon] = factor[3] + factor[4] * a + factor[5] * s;
    row[kNoising_weight] = w;
  }
  return true;
}

PyObject* noising_table(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "noising_table takes table, alpha, sigma, weight, target");
  Call call;
  Operand table;
  if (!call.begin(nullptr) || !read(args[0], table) || !table.is_float64()) Py_RETURN_NONE;
  if (table.ndim != 2 || table.shape[1] != kNoisingColumns) Py_RETURN_NONE;
  double* rows = static_cast<double*>(table.data);
  if (!noising_rows(args[1], args[2], args[3], args[4], table.shape[0], rows)) Py_RETURN_NONE;
  Py_INCREF(args[0]);
  return args[0];
}

// The rows of a table that is made already.
const double* table_rows(PyObject* object, int64_t rows, int64_t columns) {
  Operand table;
  if (!read(object, table) || !table.is_float64() || table.ndim != 2) return nullptr;
  return table.shape[0] == rows && table.shape[1] == columns ? static_cast<const double*>(table.data) : nullptr;
}

PyObject* add_noise(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 10) {
    return PyErr_Format(PyExc_TypeError,
                        "add_noise takes x0, alpha, sigma, seeds, target, stream, step, dtype, out, want_target");
  }
  constexpr int64_t kRows = 64;
  double rows[kRows * kNoisingColumns];
  Call call;
  NoisingArgs kernel;
  if (!call.begin(args[0]) || call.geometry.rows > kRows || !cpu::for_one_thread(call.geometry, true)) Py_RETURN_NONE;
  static PyObject* const one = PyFloat_FromDouble(1.0);
  if (!call.seeds(kernel.noise, args[3])) Py_RETURN_NONE;
  if (!counter(args[5], kernel.noise.stream) || !counter(args[6], kernel.step)) Py_RETURN_NONE;
  // With a table in alpha's place, sigma and target are None.
  const bool made = args[4] == Py_None;
  const double* table = made ? table_rows(args[1], call.geometry.rows, kNoisingColumns) : rows;
  if (table == nullptr) Py_RETURN_NONE;
  if (!made && !noising_rows(args[1], args[2], one, args[4], call.geometry.rows, rows)) Py_RETURN_NONE;
  Result out, target;
  if (!made && args[8] != Py_None && args[7] != Py_None) Py_RETURN_NONE;
  if (!out.given_or_like(args[8], args[0], args[7]) || !call.operand(kernel.out, out.get(), true)) Py_RETURN_NONE;
  if (args[9] == Py_True) {
    if (!target.given_or_like(Py_None, out.get()) || !call.operand(kernel.target, target.get(), true)) Py_RETURN_NONE;
  }
  kernel.geometry = call.geometry;
  kernel.table.data = table;
  kernel.table.rows = call.geometry.rows;
  call.view(kernel.x0, call.like.data, call.state);
  cpu::diffusion_kernels().add_noise(kernel, 0, cpu::task_count(kernel.geometry));
  if (target.get() == nullptr) return out.release();
  PyObject* both = PyTuple_New(2);
  PyTuple_SET_ITEM(both, 0, out.release());
  PyTuple_SET_ITEM(both, 1, target.release());
  return both;
}

// Arguments of the loss and its gradient, from the index of prediction on.
bool residual(Call& call, NoisingArgs& kernel, PyObject* const* args) {
  if (!call.begin(args[1]) || !cpu::for_one_thread(call.geometry, true)) return false;
  if (!call.operand(kernel.prediction, args[0], true) || !kernel.prediction || !call.seeds(kernel.noise, args[3]))
    return false;
  if (!counter(args[4], kernel.noise.stream) || !counter(args[5], kernel.step)) return false;
  kernel.geometry = call.geometry;
  kernel.table.data = table_rows(args[2], call.geometry.rows, kNoisingColumns);
  kernel.table.rows = call.geometry.rows;
  call.view(kernel.x0, call.like.data, call.state);
  return kernel.table.data != nullptr;
}

// Whether a tensor holds one accumulation value for each row.
bool row_values(const Call& call, PyObject* object, Operand& out) {
  const uint8_t bits = call.state == DType::kFloat64 ? 64 : 32;
  return read(object, out) && out.code == kDLFloat && out.bits == bits && out.ndim == 1 &&
         out.numel == call.geometry.rows;
}

PyObject* denoising_loss(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 7) {
    return PyErr_Format(PyExc_TypeError, "denoising_loss takes prediction, x0, table, seeds, stream, step, dtype");
  }
  Call call;
  NoisingArgs kernel;
  if (!residual(call, kernel, args)) Py_RETURN_NONE;
  Result out;
  Operand losses;
  PyObject* shape = Py_BuildValue("(L)", static_cast<long long>(call.geometry.rows));
  const bool made = out.empty(shape, args[6]);
  Py_DECREF(shape);
  if (!made || !row_values(call, out.get(), losses)) Py_RETURN_NONE;
  std::vector<double> sums(cpu::task_count(kernel.geometry));
  cpu::diffusion_kernels().residual_square(kernel, sums.data(), 0, static_cast<int64_t>(sums.size()));
  const double factor = 1.0 / static_cast<double>(call.geometry.numel);
  cpu::sum_rows(kernel.geometry, sums.data(), factor, losses.bits == 64, losses.data);
  return out.release();
}

PyObject* denoising_residual_scale(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 7) {
    return PyErr_Format(PyExc_TypeError,
                        "denoising_residual_scale takes prediction, x0, table, seeds, stream, step, scale");
  }
  Call call;
  NoisingArgs kernel;
  Operand scale;
  if (!residual(call, kernel, args) || !row_values(call, args[6], scale) || !call.no_gradient(args[6])) Py_RETURN_NONE;
  kernel.row_scale = scale.data;
  Result out;
  if (!out.given_or_like(Py_None, args[0]) || !call.operand(kernel.out, out.get(), true)) Py_RETURN_NONE;
  cpu::diffusion_kernels().residual_scale(kernel, 0, cpu::task_count(kernel.geometry));
  return out.release();
}

// Up to limit operands from a list or tuple.
bool operands(const Call& call, PyObject* objects, View* views, Py_ssize_t limit, bool lower) {
  if (!PyList_CheckExact(objects) && !PyTuple_CheckExact(objects)) return false;
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(objects);
  if (size > limit) return false;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* object = PySequence_Fast_GET_ITEM(objects, i);
    if (object == Py_None || !call.operand(views[i], object, lower)) return false;
  }
  return true;
}

PyObject* affine_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 12) {
    return PyErr_Format(PyExc_TypeError,
                        "affine_step takes x, models, table, index, base, history, seeds, stream, out, history_out, "
                        "next_input, x0_out");
  }
  Call call;
  AffineStepArgs kernel;
  const bool noisy = args[6] != Py_None;
  if (!call.begin(args[0]) || !cpu::for_one_thread(call.geometry, noisy)) Py_RETURN_NONE;
  if (Py_TYPE(args[1]) == torch.tensor) {
    if (!call.operand(kernel.models[0], args[1], true)) Py_RETURN_NONE;
  } else if (!operands(call, args[1], kernel.models, kMaxModels, true) || !kernel.models[0]) {
    Py_RETURN_NONE;
  }
  Operand table, index;
  if (!read(args[2], table) || !table.is_float64() || table.ndim != 2 || table.shape[1] != kStepColumns) Py_RETURN_NONE;
  kernel.table.data = static_cast<const double*>(table.data);
  kernel.table.rows = table.shape[0];
  if (args[3] != Py_None) {
    if (!read(args[3], index) || !index.is_int64() || index.ndim > 1) Py_RETURN_NONE;
    if (index.numel != 1 && index.numel != call.geometry.rows) Py_RETURN_NONE;
    kernel.table.index = static_cast<const int64_t*>(index.data);
    kernel.table.index_stride = index.numel == 1 ? 0 : 1;
  } else if (table.shape[0] != 1 && table.shape[0] != call.geometry.rows) {
    Py_RETURN_NONE;
  }
  if (!call.operand(kernel.base, args[4])) Py_RETURN_NONE;
  if (!operands(call, args[5], kernel.history, kMaxHistory, false)) Py_RETURN_NONE;
  if (noisy && !call.seeds(kernel.noise, args[6])) Py_RETURN_NONE;
  kernel.noise.window.stride[0] = 1;
  if (!counter(args[7], kernel.noise.stream)) Py_RETURN_NONE;
  if (!call.operand(kernel.history_out, args[9]) || !call.operand(kernel.next_input, args[10], true)) Py_RETURN_NONE;
  if (!call.operand(kernel.x0_out, args[11])) Py_RETURN_NONE;
  Result out;
  if (!out.given_or_like(args[8], args[0]) || !call.operand(kernel.out, out.get())) Py_RETURN_NONE;
  kernel.geometry = call.geometry;
  call.view(kernel.x, call.like.data, call.state);
  cpu::diffusion_kernels().affine_step(kernel, 0, cpu::task_count(kernel.geometry));
  return out.release();
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

void add_direct_calls(PyObject* module) {
  static PyMethodDef methods[] = {
      {"use_torch", fast<use_torch>(), METH_FASTCALL, "Which torch direct calls ask; False where it cannot answer."},
      {"randn", fast<randn>(), METH_FASTCALL, "pyfold.randn of a plain small call, or None."},
      {"noising_table", fast<noising_table>(), METH_FASTCALL, "Fills in a noising table from plain values, or None."},
      {"add_noise", fast<add_noise>(), METH_FASTCALL, "pyfold.add_noise of a plain small call, or None."},
      {"denoising_loss", fast<denoising_loss>(), METH_FASTCALL, "The losses of a plain small call, or None."},
      {"denoising_residual_scale", fast<denoising_residual_scale>(), METH_FASTCALL, "Its gradient, or None."},
      {"affine_step", fast<affine_step>(), METH_FASTCALL, "pyfold.affine_step of a plain small call, or None."},
      {nullptr, nullptr, 0, nullptr},
  };
  PyModule_AddFunctions(module, methods);
}

}  // namespace pyfold

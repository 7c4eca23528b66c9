#include "python/direct.h"

#include <math.h>

#include <exception>
#include <string>

#include "cpu/diffusion.h"
#include "cpu/huge_pages.h"
#include "python/plain.h"

namespace pyfold {

Torch torch;

namespace {

PyObject* use_torch(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count < 8 || !PyDict_Check(args[7])) {
    return PyErr_Format(PyExc_TypeError,
                        "use_torch takes Tensor, Parameter, is_grad_enabled, empty, empty_like, uint8, nothing, the "
                        "names of torch.autograd.forward_ad, ...");
  }
  PyObject* capsule = quiet(PyObject_GetAttrString(args[0], "__dlpack_c_exchange_api__"));
  if (capsule == nullptr) Py_RETURN_FALSE;
  const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (api == nullptr) PyErr_Clear();
  if (api == nullptr || api->major != 1 || api->tensor_from_object == nullptr) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < count; ++i) Py_INCREF(args[i]);
  torch.parameter = reinterpret_cast<PyTypeObject*>(args[1]);
  torch.grad_enabled = args[2];
  torch.empty = args[3];
  torch.empty_like = args[4];
  torch.bytes = args[5];
  torch.nothing = args[6];
  torch.forward_mode = args[7];
  torch.current_level = PyUnicode_InternFromString("_current_level");
  torch.watchers.assign(args + 8, args + count);
  torch.requires_grad = PyUnicode_InternFromString("requires_grad");
  torch.is_neg = PyUnicode_InternFromString("is_neg");
  torch.dtype_name = Py_BuildValue("(s)", "dtype");
  torch.tensor = reinterpret_cast<PyTypeObject*>(args[0]);
  torch.api = api;
  Py_RETURN_TRUE;
}

struct Call {
  bool grad_enabled = false;
  Operand like;
  DType state = DType::kFloat32;
  Geometry geometry;

  // Whether a call may go this way at all, and the tensor that the others are shaped like.
  bool begin(PyObject* object) {
    if (watched()) return false;
    grad_enabled = pyfold::grad_enabled();
    return object == nullptr || shaped_like(object);
  }

  bool shaped_like(PyObject* object) {
    if (!read(object, like) || !like.floating(state) || !no_gradient(object)) return false;
    if (like.ndim < 1 || like.ndim > kMaxDims + 1) return false;
    geometry = {like.shape[0], like.numel / like.shape[0], 1, {like.numel / like.shape[0]}};
    return true;
  }

  bool no_gradient(PyObject* object) const { return !grad_enabled || !requires_grad(object); }

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

// --- the calls

// Runs body(begin, end) over all tasks, on torch's threads where there are enough. What fails on the way is an error
// and not a call for the long way, which would work a second time on what is worked in place.
template <class Body>
bool run(const Geometry& geometry, bool noisy, const Body& body) {
  if (cpu::for_one_thread(geometry, noisy)) return body(0, cpu::task_count(geometry)), true;
  const auto task = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  std::string error;
  const bool launched = launch(cpu::launchers().tasks, geometry.rows * geometry.numel, [&](auto tasks) {
    try {
      tasks(geometry, noisy, task, &body);
    } catch (const std::exception& failure) {
      error = failure.what();
    }
  });
  if (!error.empty()) PyErr_SetString(PyExc_RuntimeError, error.c_str());
  return launched && error.empty();
}

// Of a call that did not run: None, or the error.
PyObject* not_run() { return PyErr_Occurred() != nullptr ? nullptr : Py_NewRef(Py_None); }

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
    // What is empty goes the long way, and so does what is wrong.
    if (overflow != 0 || shape[d] < 1) Py_RETURN_NONE;
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
  if (!counter(args[2], kernel.noise.stream) || !counter(args[3], kernel.noise.step)) Py_RETURN_NONE;
  kernel.geometry = call.geometry;
  call.view(kernel.out, call.like.data, call.state);
  cpu::prefer_huge_pages(kernel.geometry, {&kernel.out});
  const auto& kernels = cpu::diffusion_kernels();
  if (!run(call.geometry, true, [&](int64_t begin, int64_t end) { kernels.randn(kernel, begin, end); }))
    return not_run();
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
  if (!call.begin(args[0]) || call.geometry.rows > kRows) Py_RETURN_NONE;
  static PyObject* const one = PyFloat_FromDouble(1.0);
  if (!call.seeds(kernel.noise, args[3])) Py_RETURN_NONE;
  if (!counter(args[5], kernel.noise.stream) || !counter(args[6], kernel.noise.step)) Py_RETURN_NONE;
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
  cpu::prefer_huge_pages(kernel.geometry, {&kernel.out, &kernel.target});
  const auto& kernels = cpu::diffusion_kernels();
  const auto body = [&](int64_t begin, int64_t end) { kernels.add_noise(kernel, begin, end); };
  if (!run(call.geometry, true, body)) return not_run();
  if (target.get() == nullptr) return out.release();
  PyObject* both = PyTuple_New(2);
  PyTuple_SET_ITEM(both, 0, out.release());
  PyTuple_SET_ITEM(both, 1, target.release());
  return both;
}

// Arguments of the loss and its gradient, from the index of prediction on.
bool residual(Call& call, NoisingArgs& kernel, PyObject* const* args) {
  if (!call.begin(args[1])) return false;
  if (!call.operand(kernel.prediction, args[0], true) || !kernel.prediction || !call.seeds(kernel.noise, args[3]))
    return false;
  if (!counter(args[4], kernel.noise.stream) || !counter(args[5], kernel.noise.step)) return false;
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
  const auto& kernels = cpu::diffusion_kernels();
  const auto body = [&](int64_t begin, int64_t end) { kernels.residual_square(kernel, sums.data(), begin, end); };
  if (!run(call.geometry, cpu::draws_noise(kernel), body)) return not_run();
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
  cpu::prefer_huge_pages(kernel.geometry, {&kernel.out});
  const auto& kernels = cpu::diffusion_kernels();
  const auto body = [&](int64_t begin, int64_t end) { kernels.residual_scale(kernel, begin, end); };
  if (!run(call.geometry, cpu::draws_noise(kernel), body)) return not_run();
  return out.release();
}

// Tensors of the caller's, kept even where another thread takes them out of their list meanwhile.
class Kept {
 public:
  Kept(PyObject* given, const Call& call)
      : object_(PyList_CheckExact(given) && call.like.numel > kLongWork ? PyList_AsTuple(given) : Py_NewRef(given)) {}
  Kept(const Kept&) = delete;
  ~Kept() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

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
  if (!call.begin(args[0])) Py_RETURN_NONE;
  const Kept models(args[1], call), history(args[5], call);
  if (models.get() == nullptr || history.get() == nullptr) return nullptr;
  if (Py_TYPE(models.get()) == torch.tensor) {
    if (!call.operand(kernel.models[0], models.get(), true)) Py_RETURN_NONE;
  } else if (!operands(call, models.get(), kernel.models, kMaxModels, true) || !kernel.models[0]) {
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
  if (!operands(call, history.get(), kernel.history, kMaxHistory, false)) Py_RETURN_NONE;
  if (noisy && !call.seeds(kernel.noise, args[6])) Py_RETURN_NONE;
  kernel.noise.window.stride[0] = 1;
  if (!counter(args[7], kernel.noise.stream)) Py_RETURN_NONE;
  if (!call.operand(kernel.history_out, args[9]) || !call.operand(kernel.next_input, args[10], true)) Py_RETURN_NONE;
  if (!call.operand(kernel.x0_out, args[11])) Py_RETURN_NONE;
  Result out;
  if (!out.given_or_like(args[8], args[0]) || !call.operand(kernel.out, out.get())) Py_RETURN_NONE;
  kernel.geometry = call.geometry;
  call.view(kernel.x, call.like.data, call.state);
  cpu::prefer_huge_pages(kernel.geometry, {&kernel.out, &kernel.history_out, &kernel.next_input, &kernel.x0_out});
  const auto& kernels = cpu::diffusion_kernels();
  const auto body = [&](int64_t begin, int64_t end) { kernels.affine_step(kernel, begin, end); };
  if (!run(call.geometry, noisy, body)) return not_run();
  return out.release();
}

}  // namespace

void add_direct_calls(PyObject* module) {
  static PyMethodDef methods[] = {
      {"use_torch", fast<use_torch>(), METH_FASTCALL, "Which torch direct calls ask; False where it cannot answer."},
      {"randn", fast<randn>(), METH_FASTCALL, "pyfold.randn of a plain call, or None."},
      {"noising_table", fast<noising_table>(), METH_FASTCALL, "Fills in a noising table from plain values, or None."},
      {"add_noise", fast<add_noise>(), METH_FASTCALL, "pyfold.add_noise of a plain call, or None."},
      {"denoising_loss", fast<denoising_loss>(), METH_FASTCALL, "The losses of a plain call, or None."},
      {"denoising_residual_scale", fast<denoising_residual_scale>(), METH_FASTCALL, "Its gradient, or None."},
      {"affine_step", fast<affine_step>(), METH_FASTCALL, "pyfold.affine_step of a plain call, or None."},
      {nullptr, nullptr, 0, nullptr},
  };
  PyModule_AddFunctions(module, methods);
  add_direct_folds(module);
  add_known_folds(module);
}

}  // namespace pyfold

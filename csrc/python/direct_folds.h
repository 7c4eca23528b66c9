#pragma once

#include "folds/layout.h"
#include "folds/sequence.h"
#include "python/plain.h"

// Direct calls of the fold ops, as their own functions and the calls that were checked before run them. Each says
// whether the call was plain, and has run.
namespace pyfold {

constexpr int kMostDims = 16;

inline bool integer(PyObject* object, int64_t& out) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  out = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

// A dense tensor in any memory order; the layout's units are set already.
inline bool lay_out(const Operand& given, FoldLayout& layout, int64_t dim) {
  int64_t order[kMostDims];
  return given.ndim <= kMostDims && given.strides != nullptr &&
         fold_layout(layout, given.ndim, given.shape, given.strides, dim, order) == nullptr;
}

// Whatever a forward gives: the bits stay empty unless they are to be remembered.
struct Made {
  Result y, bits, clamped;
};

// rest: kind, dim, pairing, gain, clamp, groups, remember.
bool reflect(PyObject* x, const Operand& given, PyObject* bias, PyObject* angle, PyObject* const* rest, bool remember,
             Made& made);
bool reflect_gradient(PyObject* grad, PyObject* bits, PyObject* clamped, PyObject* angle, PyObject* const* rest,
                      PyObject* groups, bool transpose, Result& out);
// rest: program, constants, rows, planes, dim, pairing, groups, remember.
bool run_sequence(PyObject* x, const Operand& given, PyObject* bias, PyObject* parameters, PyObject* const* rest,
                  bool remember, Made& made);
bool apply_sequence(PyObject* value, PyObject* bits, PyObject* parameters, PyObject* const* rest, SequenceMode mode,
                    Result& out);

}  // namespace pyfold

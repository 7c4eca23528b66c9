#pragma once

#include <Python.h>

// Calls on CPU tensors without torch's dispatcher, which costs three to five microseconds a call: more than a
// kernel of a few thousand elements. Everything that is not plain (another device, strides, a gradient, a tracing or
// counting mode, a wrong argument) is left alone, and the caller goes the long
// way.
namespace pyfold {

// Adds the functions to the module; each gives None where it did nothing.
void add_direct_calls(PyObject* module);
void add_direct_folds(PyObject* module);
void add_known_folds(PyObject* module);

}  // namespace pyfold

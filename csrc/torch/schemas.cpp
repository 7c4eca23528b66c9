#include "torch/boxed.h"

// The schemas of all ops, made of their declarations in csrc/ops. pyfold/ops is the documented way to call them.
STABLE_TORCH_LIBRARY(pyfold, m) {
  for (const pyfold::ops::Op& op : pyfold::ops::all()) m.def(op.schema().c_str());
}

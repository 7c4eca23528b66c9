#include "cpu/launch.h"
#include "torch/boxed.h"

// The kernels of all ops for the CPU.
namespace pyfold::ops {
namespace {

struct OnCpu {
  static void run(size_t number, Call& call, const Tensor&) { all()[number].cpu(call); }
};

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

[[maybe_unused]] const bool registered = (cpu::parallel_for() = parallel_for, true);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyfold, CPU, m) { register_all<OnCpu>(m); }

}  // namespace pyfold::ops

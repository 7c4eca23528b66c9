// The CUDA runtime as far as pyfold's launchers and nvcc's host code call it, with the machine of machine.h as its one
// device. A launch runs before it returns. What a kernel does wrong is the error of its launch, and its text is what
// cudaGetErrorString gives.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "test/gpu/decode.h"
#include "test/gpu/fatbin.h"
#include "test/gpu/report.h"

#define PYFOLD_API extern "C" __attribute__((visibility("default")))

namespace pyfold::gpu {
namespace {

enum Error { kSuccess = 0, kInvalidValue = 1, kMemoryAllocation = 2, kInvalidConfiguration = 9, kLaunchFailure = 719 };

// Limits of a block and a grid on every device since compute capability 7.0.
constexpr uint64_t kMaxThreads = 1024, kMaxThreadsZ = 64, kMaxGridX = 0x7FFF'FFFF, kMaxGridYZ = 65535;
constexpr uint32_t kSharedBytes = 48 << 10, kSharedBytesOnDemand = 227 << 10;
constexpr uint32_t kMaxParameterBytes = 32764;

// What __cudaRegisterFatBinary was given; its module is parsed at the first launch.
struct Binary {
  const void* wrapper = nullptr;
  std::unique_ptr<LoadedModule> module;
};

struct Registered {
  Binary* binary = nullptr;
  std::string name;
  uint32_t dynamic_shared = kSharedBytes;  // what cudaFuncSetAttribute allows
};

struct Runtime {
  std::mutex mutex;
  std::vector<std::unique_ptr<Binary>> binaries;
  std::map<const void*, Registered> functions;
  std::vector<std::unique_ptr<LoadedModule>> texts;
  Options options;
  uint64_t launches = 0, faults = 0;
  bool recording = false;
  std::vector<Launch> recorded;
  std::vector<void*> owned;
};

Runtime& runtime() {
  static Runtime* one = new Runtime;  // kernels may be launched, and binaries unregistered, until the very end
  return *one;
}

thread_local Error last_error = kSuccess;
std::string& last_text() {
  static thread_local std::string text;
  return text;
}

int wanted_capability() {
  const char* capability = std::getenv("PYFOLD_GPU_TEST_CAPABILITY");
  return capability == nullptr ? 90 : std::atoi(capability);
}

LoadedModule& module_of(Binary& binary) {
  if (binary.module) return *binary.module;
  std::string found;
  for (const PtxImage& image : ptx_images(binary.wrapper)) {
    if (image.capability == wanted_capability()) {
      binary.module = std::make_unique<LoadedModule>(image.text);
      return *binary.module;
    }
    found += " compute_" + std::to_string(image.capability);
  }
  throw Fault("no PTX for compute_" + std::to_string(wanted_capability()) + " was compiled in, only for" + found);
}

Error failed(Error error, const std::string& text) {
  last_text() = text;
  return last_error = error;
}

// Null, or why a device would not start it.
std::string refused(const Launch& launch, uint32_t dynamic_limit) {
  const Dim3 &grid = launch.grid, &block = launch.block;
  const uint64_t threads = block.count();
  const int limit = launch.kernel->max_threads;
  if (threads == 0 || grid.count() == 0) return "a grid or a block of size 0";
  if (threads > kMaxThreads || block.z > kMaxThreadsZ) return std::to_string(threads) + " threads in a block";
  if (limit > 0 && threads > static_cast<uint64_t>(limit)) {
    return std::to_string(threads) + " threads in a block of a kernel with __launch_bounds__(" + std::to_string(limit) +
           ")";
  }
  if (grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    return "a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z);
  }
  if (launch.parameters.size() > kMaxParameterBytes)
    return std::to_string(launch.parameters.size()) + " bytes of parameters";
  const uint64_t shared = static_cast<uint64_t>(launch.kernel->shared_bytes) + launch.dynamic_shared;
  const uint64_t most = dynamic_limit > kSharedBytes ? kSharedBytesOnDemand : kSharedBytes;
  if (shared > most || launch.dynamic_shared > dynamic_limit) return std::to_string(shared) + " bytes of shared memory";
  return "";
}

Error start(const Launch& launch, uint32_t dynamic_limit) {
  Runtime& state = runtime();
  const std::string why = refused(launch, dynamic_limit);
  if (!why.empty()) {
    ++state.faults;
    return failed(kInvalidConfiguration, "GPU simulator: the launch is refused: " + why);
  }
  if (state.recording) {
    state.recorded.push_back(launch);
    return kSuccess;
  }
  ++state.launches;
  execute(launch, state.options);
  return kSuccess;
}

template <class Body>
Error guarded(Body&& body) {
  const std::lock_guard lock(runtime().mutex);
  try {
    return body();
  } catch (const Fault& fault) {
    ++runtime().faults;
    return failed(kLaunchFailure, std::string("GPU simulator: ") + fault.what());
  }
}

Error launch_registered(const void* function, const Dim3& grid, const Dim3& block, void** arguments, size_t shared) {
  return guarded([&] {
    const auto found = runtime().functions.find(function);
    if (found == runtime().functions.end()) return failed(kInvalidValue, "GPU simulator: no such kernel is registered");
    Launch launch;
    launch.kernel = &module_of(*found->second.binary).kernel(found->second.name);
    launch.grid = grid;
    launch.block = block;
    launch.dynamic_shared = static_cast<uint32_t>(shared);
    launch.parameters.resize(launch.kernel->parameter_bytes);
    for (size_t k = 0; k < launch.kernel->parameters.size(); ++k) {
      const auto [offset, bytes] = launch.kernel->parameters[k];
      std::memcpy(launch.parameters.data() + offset, arguments[k], bytes);
    }
    return start(launch, found->second.dynamic_shared);
  });
}

struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local std::vector<Configuration> configurations;

// Every kernel of the compiled binaries, launched or not, and those of modules from texts that were launched.
std::vector<const Kernel*> all_kernels() {
  std::vector<const Kernel*> kernels;
  for (const auto& binary : runtime().binaries) {
    LoadedModule& module = module_of(*binary);
    for (const std::string& name : module.entries()) kernels.push_back(&module.kernel(name));
  }
  for (const auto& module : runtime().texts) {
    for (const std::string& name : module->entries()) {
      if (module->decoded(name)) kernels.push_back(&module->kernel(name));
    }
  }
  return kernels;
}

void write_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + "." + std::to_string(reinterpret_cast<uint64_t>(&path)) + ".tmp";
  if (std::FILE* file = std::fopen(temporary.c_str(), "w")) {
    const bool whole = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if (std::fclose(file) == 0 && whole && std::rename(temporary.c_str(), path.c_str()) == 0) return;
  }
  std::fprintf(stderr, "GPU simulator: %s cannot be written\n", path.c_str());
}

}  // namespace
}  // namespace pyfold::gpu

using namespace pyfold::gpu;

// --- what nvcc's host code calls

PYFOLD_API void** __cudaRegisterFatBinary(void* wrapper) {
  const std::lock_guard lock(runtime().mutex);
  runtime().binaries.push_back(std::make_unique<Binary>());
  runtime().binaries.back()->wrapper = wrapper;
  return reinterpret_cast<void**>(runtime().binaries.back().get());
}
PYFOLD_API void __cudaRegisterFatBinaryEnd(void**) {}
PYFOLD_API void __cudaUnregisterFatBinary(void**) {}  // its counts are still to be reported
PYFOLD_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
PYFOLD_API void __cudaRegisterFunction(void** binary, const char* function, char*, const char* name, int, void*, void*,
                                       void*, void*, int*) {
  const std::lock_guard lock(runtime().mutex);
  Registered& registered = runtime().functions[function];
  registered.binary = reinterpret_cast<Binary*>(binary);
  registered.name = name;
}
PYFOLD_API unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
PYFOLD_API Error __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void** stream) {
  if (configurations.empty()) return kInvalidConfiguration;
  *grid = configurations.back().grid;
  *block = configurations.back().block;
  *shared = configurations.back().shared;
  *stream = configurations.back().stream;
  configurations.pop_back();
  return kSuccess;
}
PYFOLD_API Error __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return kSuccess;
}
PYFOLD_API Error __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  return launch_registered(kernel, grid, block, arguments, shared);
}

// --- the runtime's own names

PYFOLD_API Error cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared, void*) {
  return launch_registered(function, grid, block, arguments, shared);
}
PYFOLD_API Error cudaGetLastError() { return std::exchange(last_error, kSuccess); }
PYFOLD_API Error cudaPeekAtLastError() { return last_error; }
PYFOLD_API const char* cudaGetErrorString(Error error) { return error == kSuccess ? "no error" : last_text().c_str(); }
PYFOLD_API Error cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
PYFOLD_API Error cudaSetDevice(int device) {
  return device == 0 ? kSuccess : failed(kInvalidValue, "there is one device");
}
PYFOLD_API Error cudaDeviceSynchronize() { return kSuccess; }
PYFOLD_API Error cudaStreamSynchronize(void*) { return kSuccess; }
PYFOLD_API Error cudaFuncSetAttribute(const void* function, int attribute, int value) {
  constexpr int kMaxDynamicShared = 8;
  const std::lock_guard lock(runtime().mutex);
  const auto found = runtime().functions.find(function);
  if (attribute != kMaxDynamicShared || found == runtime().functions.end() || value < 0 ||
      static_cast<uint32_t>(value) > kSharedBytesOnDemand) {
    return failed(kInvalidValue, "GPU simulator: this attribute of a kernel cannot be set");
  }
  found->second.dynamic_shared = static_cast<uint32_t>(value);
  return kSuccess;
}
PYFOLD_API Error cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return failed(kMemoryAllocation, "out of memory");
  Allocations::all().add(*memory, bytes);
  return kSuccess;
}
PYFOLD_API Error cudaFree(void* memory) {
  Allocations::all().remove(memory);
  std::free(memory);
  return kSuccess;
}
PYFOLD_API Error cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  std::memcpy(to, from, bytes);
  return kSuccess;
}

// --- for the tests

PYFOLD_API void gpu_allocated(const void* memory, uint64_t bytes) { Allocations::all().add(memory, bytes); }
PYFOLD_API void gpu_freed(const void* memory) { Allocations::all().remove(memory); }

// A module from PTX, or null and gpu_fault_text().
PYFOLD_API LoadedModule* gpu_module(const char* text) {
  LoadedModule* module = nullptr;
  guarded([&] {
    runtime().texts.push_back(std::make_unique<LoadedModule>(text));
    module = runtime().texts.back().get();
    return kSuccess;
  });
  return module;
}
// parameters: the bytes of the kernel's parameters, laid out as PTX does.
PYFOLD_API Error gpu_launch(LoadedModule* module, const char* kernel, const uint32_t* grid, const uint32_t* block,
                            uint32_t shared, const unsigned char* parameters) {
  const Error error = guarded([&] {
    Launch launch;
    launch.kernel = &module->kernel(kernel);
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.dynamic_shared = shared;
    launch.parameters.assign(parameters, parameters + launch.kernel->parameter_bytes);
    return start(launch, kSharedBytes);
  });
  last_error = kSuccess;
  return error;
}
PYFOLD_API const char* gpu_fault_text() { return last_text().c_str(); }
PYFOLD_API uint64_t gpu_faults() { return runtime().faults; }
PYFOLD_API uint64_t gpu_launches() { return runtime().launches; }

PYFOLD_API void gpu_look_for_races(int yes) { runtime().options.races = yes != 0; }
PYFOLD_API void gpu_count_sectors(int yes) { runtime().options.sectors = yes != 0; }
// Of later launches, executes these blocks of the grid alone, as far as it has them; all, if none are named.
PYFOLD_API void gpu_only_blocks(const uint64_t* blocks, uint64_t count) {
  runtime().options.blocks.assign(blocks, blocks + count);
}

// As a stream that is captured: launches are kept, not executed, until gpu_end_recording(); each gpu_replay() executes
// them in order, with the arguments that they were given then.
PYFOLD_API void gpu_begin_recording() {
  runtime().recorded.clear();
  runtime().recording = true;
}
PYFOLD_API uint64_t gpu_end_recording() {
  runtime().recording = false;
  return runtime().recorded.size();
}
PYFOLD_API Error gpu_replay() {
  const Error error = guarded([&] {
    for (const Launch& launch : runtime().recorded) {
      ++runtime().launches;
      execute(launch, runtime().options);
    }
    return kSuccess;
  });
  last_error = kSuccess;
  return error;
}

// What was executed so far, as JSON (report.h), into the file.
PYFOLD_API Error gpu_report(const char* path) {
  return guarded([&] {
    write_file(path, report(all_kernels()));
    return kSuccess;
  });
}
// The text of the module that a kernel is of, to which the lines of gpu_report belong, into the file.
PYFOLD_API Error gpu_module_text(const char* symbol, const char* path) {
  return guarded([&] {
    for (const Kernel* kernel : all_kernels()) {
      if (kernel->name != symbol) continue;
      write_file(path, std::string(kernel->module_text));
      return kSuccess;
    }
    throw Fault(std::string("there is no kernel ") + symbol);
  });
}
PYFOLD_API void gpu_reset_counts() {
  guarded([&] {
    for (const Kernel* one : all_kernels()) {
      Kernel& kernel = *const_cast<Kernel*>(one);
      for (auto* counts : {&kernel.issued, &kernel.executed, &kernel.sectors})
        std::fill(counts->begin(), counts->end(), 0);
      kernel.distinct_loads.clear();
      kernel.distinct_stores.clear();
      kernel.launches = kernel.threads = kernel.block_threads = kernel.block_shared = 0;
    }
    return kSuccess;
  });
}

namespace {

// PYFOLD_GPU_TEST_REPORT=FILE has the report written when the process ends.
struct ReportAtExit {
  ~ReportAtExit() {
    const char* path = std::getenv("PYFOLD_GPU_TEST_REPORT");
    if (path != nullptr && *path != '\0') gpu_report(path);
  }
} report_at_exit;

}  // namespace

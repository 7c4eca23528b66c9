// What csrc/torch/*_cuda.cpp find in a CUDA build of torch, for a CPU build: a current stream, a device guard, and
// memory of the device. The memory is every tensor's, because this is torch's CPU allocator once
// pyfold_gpu_use_allocator() has been called: each allocation is announced to the simulator with the bytes that were
// asked for, so that one beyond them is found, and so is memory that is no tensor's.

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

extern "C" void gpu_allocated(const void* memory, uint64_t bytes);
extern "C" void gpu_freed(const void* memory);

namespace {

constexpr size_t kAlign = 64;
// From here on memory is reserved and comes into being where it is touched.
constexpr size_t kReservedBytes = size_t{256} << 20;
// A NaN in every floating-point type: what nothing has written does not pass for a result.
constexpr int kUnwritten = 0xFF;

std::mutex mutex;
std::unordered_map<void*, size_t>& reserved() {
  static auto* sizes = new std::unordered_map<void*, size_t>;
  return *sizes;
}

void release(void* memory) {
  if (memory == nullptr) return;
  gpu_freed(memory);
  size_t mapped = 0;
  {
    const std::lock_guard lock(mutex);
    const auto found = reserved().find(memory);
    if (found != reserved().end()) {
      mapped = found->second;
      reserved().erase(found);
    }
  }
  if (mapped > 0) {
    munmap(memory, mapped);
  } else {
    std::free(memory);
  }
}

class DeviceMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (bytes >= kReservedBytes) {
      memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      const std::lock_guard lock(mutex);
      reserved()[memory] = bytes;
    } else if (bytes > 0) {
      memory = std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
      if (memory == nullptr) throw std::bad_alloc();
      std::memset(memory, kUnwritten, bytes);
    }
    if (memory != nullptr) gpu_allocated(memory, bytes);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void pyfold_gpu_use_allocator() {
  static DeviceMemory memory;
  c10::SetCPUAllocator(&memory, 255);
}

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
extern "C" AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}
extern "C" AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }

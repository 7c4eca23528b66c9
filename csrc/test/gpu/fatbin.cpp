#include "test/gpu/fatbin.h"

#include <cstdint>
#include <cstring>

#include "test/gpu/fault.h"

namespace pyfold::gpu {
namespace {

struct Wrapper {
  uint32_t magic, version;
  const unsigned char* container;
  const void* file;
};
constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xBA55ED50;

// Only what is read here; both headers say how long they are.
constexpr size_t kContainerHeaderBytes = 6, kContainerBytes = 8;
constexpr size_t kEntryKind = 0, kEntryHeaderBytes = 4, kEntryBytes = 8, kEntryCapability = 28, kEntryFlags = 40,
                 kEntryUncompressedBytes = 56;
constexpr uint16_t kPtx = 1;
constexpr uint64_t kCompressed = 0x2000 | 0x8000;  // LZ4, Zstandard

template <class T>
T read(const unsigned char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

}  // namespace

std::vector<PtxImage> ptx_images(const void* wrapper) {
  const Wrapper outer = read<Wrapper>(static_cast<const unsigned char*>(wrapper));
  if (outer.magic != kWrapperMagic || read<uint32_t>(outer.container) != kContainerMagic) {
    throw Fault("not a fat binary of nvcc");
  }
  const unsigned char* entry = outer.container + read<uint16_t>(outer.container + kContainerHeaderBytes);
  const unsigned char* end = entry + read<uint64_t>(outer.container + kContainerBytes);
  std::vector<PtxImage> images;
  while (entry < end) {
    const unsigned char* payload = entry + read<uint32_t>(entry + kEntryHeaderBytes);
    const uint64_t bytes = read<uint64_t>(entry + kEntryBytes);
    if (read<uint16_t>(entry + kEntryKind) == kPtx) {
      if ((read<uint64_t>(entry + kEntryFlags) & kCompressed) != 0 ||
          read<uint64_t>(entry + kEntryUncompressedBytes) != 0) {
        throw Fault("the PTX is compressed; compile with nvcc --compress-mode=none");
      }
      const char* text = reinterpret_cast<const char*>(payload);
      images.push_back({read<int>(entry + kEntryCapability), std::string_view(text, strnlen(text, bytes))});
    }
    entry = payload + bytes;
  }
  return images;
}

}  // namespace pyfold::gpu

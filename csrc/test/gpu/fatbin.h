#pragma once

#include <string_view>
#include <vector>

namespace pyfold::gpu {

// PTX that nvcc put into an object file, and the compute capability it is for (90 is compute_90).
struct PtxImage {
  int capability = 0;
  std::string_view text;
};

// All PTX behind the pointer that nvcc's host code gives to __cudaRegisterFatBinary; machine code is passed over.
// Throws Fault where an image is compressed: compile with --compress-mode=none.
std::vector<PtxImage> ptx_images(const void* wrapper);

}  // namespace pyfold::gpu

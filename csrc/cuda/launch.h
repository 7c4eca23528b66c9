#pragma once

#include <stdint.h>

namespace pyfold::cuda {

// The blocks of a launch over count items. More than a grid holds give none, which a launch refuses: never a part.
inline unsigned blocks_for(int64_t count, int64_t per_block = 1) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  return blocks <= INT32_MAX ? static_cast<unsigned>(blocks) : 0;
}

}  // namespace pyfold::cuda

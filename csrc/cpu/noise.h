#pragma once

#include <stdint.h>

#include "core/normal.h"
#include "cpu/philox_lanes.h"

namespace pyfold {
namespace {

// Blocks made at a time: their words stay in the first cache level.
constexpr int kNoiseBatchBlocks = 128;
constexpr int kNoiseGroupBlocks = 2 * VectorLanes::kCount;

// Normals of blocks [block, block + blocks), blocks a multiple of kNoiseGroupBlocks and at most kNoiseBatchBlocks.
inline void normal_batch(const NoiseKey& key, uint64_t block, int blocks, float* __restrict out) {
  using Lanes = VectorLanes;
  using Word = Lanes::Word;
  alignas(64) uint32_t words[4][kNoiseBatchBlocks];
  Word lane;
  for (int i = 0; i < Lanes::kCount; ++i) lane[i] = 2 * i;

  for (int group = 0; group < blocks; group += kNoiseGroupBlocks) {
    // Even and odd blocks apart: each word fills the low half of a lane, and the two interleave in block order.
    Word even[4], odd[4];
    even[0] = lane + (block + group);
    odd[0] = even[0] + 1;
    even[1] = even[0] >> 32;
    odd[1] = odd[0] >> 32;
    even[2] = odd[2] = Lanes::broadcast(key.step);
    even[3] = odd[3] = Lanes::broadcast(key.stream);
    philox4x32<Lanes>(even, key.seed_low, key.seed_high);
    philox4x32<Lanes>(odd, key.seed_low, key.seed_high);
    for (int w = 0; w < 4; ++w) {
      const Word merged = (even[w] & 0xFFFFFFFFu) | (odd[w] << 32);
      __builtin_memcpy(&words[w][group], &merged, sizeof merged);
    }
  }
  for (int i = 0; i < (blocks & ~(kNoiseGroupBlocks - 1)); ++i) {
    box_muller(words[0][i], words[1][i], out[4 * i], out[4 * i + 1]);
    box_muller(words[2][i], words[3][i], out[4 * i + 2], out[4 * i + 3]);
  }
}

// Elements that normal_run may write past those asked for.
constexpr int kNoiseSlack = 4 * kNoiseGroupBlocks + kNormalsPerBlock;

// Normals of elements [element, element + count) at buffer[element % 4]; buffer holds count + kNoiseSlack floats.
inline void normal_run(const NoiseKey& key, int64_t element, int count, float* __restrict buffer) {
  const uint64_t first = static_cast<uint64_t>(element) / kNormalsPerBlock;
  const uint64_t last = (static_cast<uint64_t>(element) + count + kNormalsPerBlock - 1) / kNormalsPerBlock;
  for (uint64_t block = first; block < last; block += kNoiseBatchBlocks) {
    const uint64_t left = last - block;
    const int blocks = left < kNoiseBatchBlocks
                           ? static_cast<int>((left + kNoiseGroupBlocks - 1) & ~uint64_t{kNoiseGroupBlocks - 1})
                           : kNoiseBatchBlocks;
    normal_batch(key, block, blocks, buffer + kNormalsPerBlock * (block - first));
  }
}

}  // namespace
}  // namespace pyfold

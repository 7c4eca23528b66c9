#pragma once

#include <stdint.h>

#include "cpu/normal_lanes.h"
#include "cpu/philox_lanes.h"

namespace pyfold {
namespace {

// Blocks made at a time: their words stay in the first cache level.
constexpr int kNoiseBatchBlocks = 128;
constexpr int kNoiseGroupBlocks = VectorLanes::kCount;

// Elements that NormalStream::run may write past those asked for.
constexpr int kNoiseSlack = 4 * kNoiseGroupBlocks + kNormalsPerBlock;

// The normals of a key, by vectors of blocks.
class NormalStream {
 public:
  // What run and ends_with are of. The tiles of a row have one key, whose rounds are made for the first of them.
  void set(const NoiseKey& key) {
    if (is_set_ && key == key_) return;
    is_set_ = true;
    key_ = key;
    step_ = Lanes::key(key.step);
    stream_ = Lanes::key(key.stream);
    uint32_t key0 = key.seed_low, key1 = key.seed_high;
    for (auto& round : keys_) {
      round[0] = Lanes::key(key0);
      round[1] = Lanes::key(key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    last_key_ = Lanes::key(key0 | static_cast<uint64_t>(key1) << 32);
  }

  // Whether run writes exactly the elements asked for.
  bool ends_with(int64_t element, int count) const {
    const uint64_t last = block_of(element) + (count - 1) / kNormalsPerBlock;
    return element % kNormalsPerBlock == 0 && count % (kNormalsPerBlock * kNoiseGroupBlocks) == 0 &&
           block_of(element) >> 32 == last >> 32;
  }

  // Normals of elements [element, element + count) at buffer[element % 4]; buffer holds count + kNoiseSlack floats.
  void run(int64_t element, int count, float* __restrict buffer) const {
    const uint64_t first = block_of(element);
    const int blocks = (static_cast<int>(element % kNormalsPerBlock) + count + kNormalsPerBlock - 1) / kNormalsPerBlock;
    for (int at = 0, now; at < blocks; at += now) {
      // A batch ends where the counter's second word changes; what is made beyond is made again.
      const uint64_t block = first + at, until_carry = uint64_t{0xFFFFFFFFu} - (block & 0xFFFFFFFFu) + 1;
      now = blocks - at < kNoiseBatchBlocks ? blocks - at : kNoiseBatchBlocks;
      if (static_cast<uint64_t>(now) > until_carry) now = static_cast<int>(until_carry);
      batch(block, now, buffer + kNormalsPerBlock * at);
    }
  }

 private:
  using Lanes = VectorLanes;
  using Word = Lanes::Word;

  uint64_t block_of(int64_t element) const {
    return key_.first_block + static_cast<uint64_t>(element) / kNormalsPerBlock;
  }

  // Vectors worked by turns: a round is a chain of instructions, of which each takes longer than the start of the next.
#if defined(__AVX512F__)
  static constexpr int kSets = 4;
#else
  static constexpr int kSets = 2;
#endif

  // First and third words of a batch's blocks side by side, and second and fourth.
  struct Words {
    alignas(64) uint32_t even[2 * kNoiseBatchBlocks], odd[2 * kNoiseBatchBlocks];
  };

  // Out of line, so that keys are read from memory: there are more of them than registers.
  __attribute__((noinline)) void batch(uint64_t block, int blocks, float* __restrict out) const {
    Words words;
    int at = 0;
    Word lane;
    for (int i = 0; i < Lanes::kCount; ++i) lane[i] = block + block_of_lane(i);
    const Word high = Lanes::broadcast(static_cast<uint32_t>(block >> 32));
    for (; at + kSets * Lanes::kCount <= blocks; at += kSets * Lanes::kCount) make_words<kSets>(lane, high, at, words);
    for (; at < blocks; at += Lanes::kCount) make_words<1>(lane, high, at, words);
    // at is a whole number of vectors.
#if defined(PYFOLD_VECTOR_NORMALS)
    PYFOLD_UNROLL_TWICE
    for (int i = 0; i < 2 * at; i += VectorNormals::kCount) {
      VectorNormals::Float z0, z1;
      box_muller<VectorNormals>(VectorNormals::load(words.even + i), VectorNormals::load(words.odd + i), z0, z1);
      VectorNormals::store(out + 2 * i, z0, z1);
    }
#else
    for (int i = 0, n = 2 * (at & ~(Lanes::kCount - 1)); i < n; ++i) {
      box_muller<ScalarNormals>(words.even[i], words.odd[i], out[2 * i], out[2 * i + 1]);
    }
#endif
  }

  // lane: the blocks' low words, left at those that follow.
  template <int kVectors>
  PYFOLD_HD void make_words(Word& lane, Word high, int at, Words& words) const {
    const auto* keys = Lanes::in_memory(keys_);
    Word counter[kVectors][4];
    PYFOLD_UNROLL_VECTORS
    for (int v = 0; v < kVectors; ++v) {
      counter[v][0] = lane;
      lane = lane + static_cast<uint64_t>(Lanes::kCount);
      counter[v][1] = high;
      counter[v][2] = Lanes::from_key(step_);
      counter[v][3] = Lanes::from_key(stream_);
    }
    PYFOLD_UNROLL_VECTORS
    for (int round = 0; round < kPhiloxRounds - 1; ++round) {
      PYFOLD_UNROLL_VECTORS
      for (int v = 0; v < kVectors; ++v) philox_round<Lanes>(counter[v], keys[round][0], keys[round][1]);
    }
    PYFOLD_UNROLL_VECTORS
    for (int v = 0; v < kVectors; ++v) {
      // The last round, of words side by side.
      const Word product0 = Lanes::multiply(counter[v][0], kPhiloxMultiplier0);
      const Word product1 = Lanes::multiply(counter[v][2], kPhiloxMultiplier1);
      const Word even =
          Lanes::xor3(Lanes::pair_high(product1, product0), Lanes::pair(counter[v][1], counter[v][3]), last_key_);
      const Word odd = Lanes::pair(product1, product0);
      __builtin_memcpy(words.even + 2 * (at + v * Lanes::kCount), &even, sizeof even);
      __builtin_memcpy(words.odd + 2 * (at + v * Lanes::kCount), &odd, sizeof odd);
    }
  }

  // Vectors are interleaved within parts of 128 bits: even lanes come out in the first one, the others in the second.
  static constexpr int block_of_lane(int lane) {
#if defined(PYFOLD_VECTOR_NORMALS)
    return lane % 2 * (Lanes::kCount / 2) + lane / 2;
#else
    return lane;
#endif
  }

  Lanes::Key keys_[kPhiloxRounds - 1][2], last_key_, step_, stream_;
  NoiseKey key_;
  bool is_set_ = false;
};

}  // namespace
}  // namespace pyfold

#pragma once

#include <stdint.h>
#include <string.h>

#include "core/macros.h"

// Eight folds remember themselves in a byte: bit i of byte b is unit 8 b + i.
namespace pyfold {
namespace {

// From eight bytes that are 0 or 1.
PYFOLD_HD uint8_t pack_bits(const uint8_t* flags) {
  uint64_t word;
  memcpy(&word, flags, sizeof word);
  return static_cast<uint8_t>((word * 0x0102040810204080u) >> 56);
}

PYFOLD_HD void unpack_bits(uint8_t byte, uint8_t* flags) {
  const uint64_t spread = (byte * 0x0101010101010101u) & 0x8040201008040201u;
  const uint64_t word = ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
  memcpy(flags, &word, sizeof word);
}

}  // namespace
}  // namespace pyfold

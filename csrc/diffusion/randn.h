#pragma once

#include "diffusion/program.h"

namespace pyfold {

struct RandnArgs {
  Geometry geometry;
  NoiseSource noise;
  View out;
};

namespace {

template <class Tile>
PYFOLD_HD void randn(Tile& tile, const RandnArgs& args) {
  typename Tile::Register z;
  if constexpr (Tile::kPassesCount) tile.aim(z, args.out);
  tile.noise(z, args.noise);
  tile.store(args.out, z);
}

}  // namespace
}  // namespace pyfold

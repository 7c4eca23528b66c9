#pragma once

#include "diffusion/program.h"

namespace pyfold {

struct RandnArgs {
  Geometry geometry;
  NoiseSource noise;
  View out;

  template <class Body>
  void each_view(Body&& body) const {
    body(out);
  }
};

namespace {

template <class Tile>
PYFOLD_HD void randn(Tile& tile, const RandnArgs& args) {
  typename Tile::Register z;
  tile.write(args.out, z, Noise{args.noise});
}

}  // namespace
}  // namespace pyfold

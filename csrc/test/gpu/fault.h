#pragma once

#include <stdexcept>

namespace pyfold::gpu {

// What a launch did wrong, or what the simulator does not know. It ends the launch, as an error of the device would.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace pyfold::gpu

#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "test/gpu/machine.h"

namespace pyfold::gpu {

// A module whose variables have memory, and its kernels, each decoded when it is first asked for.
class LoadedModule {
 public:
  explicit LoadedModule(std::string_view text);
  ~LoadedModule();
  LoadedModule(const LoadedModule&) = delete;

  // Throws Fault where there is no such entry, or where it holds what the simulator does not know.
  Kernel& kernel(const std::string& name);
  const Module& module() const { return module_; }
  uint64_t address(const std::string& variable) const;
  bool decoded(const std::string& name) const { return kernels_.count(name) != 0 && kernels_.at(name) != nullptr; }
  // Every entry, decoded or not.
  std::vector<std::string> entries() const;

 private:
  Module module_;
  std::map<std::string, std::vector<unsigned char>> variables_;
  std::map<std::string, uint64_t> addresses_;
  std::map<std::string, std::unique_ptr<Kernel>> kernels_;
};

}  // namespace pyfold::gpu

#pragma once

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace pyfold::gpu {

// A kernel's name as C++ writes it, without the name of the file that nvcc puts into anonymous namespaces.
inline std::string demangled(const std::string& name) {
  struct Free {
    void operator()(char* text) const { std::free(text); }
  };
  const std::unique_ptr<char, Free> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr));
  std::string result = text ? text.get() : name;
  for (size_t at = 0; (at = result.find("_GLOBAL__N__", at)) != std::string::npos;) {
    const size_t end = result.find("::", at);
    if (end == std::string::npos) break;
    result.erase(at, end + 2 - at);
  }
  for (size_t at = 0; (at = result.find("(anonymous namespace)::", at)) != std::string::npos;) result.erase(at, 23);
  return result;
}

}  // namespace pyfold::gpu

#pragma once

#include <string_view>
#include <vector>

namespace pyfold::gpu {

struct Token {
  // kLine is a directive that ends with its line: .loc, .file, .version, .target, .address_size.
  enum class Kind { kName, kDirective, kNumber, kString, kPunctuation, kLine, kEnd };
  Kind kind = Kind::kEnd;
  std::string_view text;

  bool is(std::string_view other) const { return text == other; }
};

// Comments and white space are gone; the last token is kEnd.
std::vector<Token> tokens_of(std::string_view text);

}  // namespace pyfold::gpu

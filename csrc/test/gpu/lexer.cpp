#include "test/gpu/lexer.h"

#include <cctype>
#include <string>

#include "test/gpu/fault.h"

namespace pyfold::gpu {
namespace {

bool in_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$'; }

bool ends_with_its_line(std::string_view directive) {
  return directive == ".loc" || directive == ".file" || directive == ".version" || directive == ".target" ||
         directive == ".address_size";
}

}  // namespace

std::vector<Token> tokens_of(std::string_view text) {
  std::vector<Token> tokens;
  size_t at = 0;
  // The end of a run of name characters; names of instructions, special registers and cache hints hold . and ::
  const auto name_end = [&](size_t from) {
    while (from < text.size() &&
           (in_name(text[from]) || text[from] == '.' ||
            (text[from] == ':' && from + 1 < text.size() && (text[from + 1] == ':' || text[from - 1] == ':')))) {
      ++from;
    }
    return from;
  };
  const auto push = [&](Token::Kind kind, size_t end) {
    tokens.push_back({kind, text.substr(at, end - at)});
    at = end;
  };
  while (at < text.size()) {
    const char c = text[at];
    if (std::isspace(static_cast<unsigned char>(c))) {
      ++at;
    } else if (text.substr(at, 2) == "//") {
      at = std::min(text.find('\n', at), text.size());
    } else if (text.substr(at, 2) == "/*") {
      at = std::min(text.find("*/", at), text.size() - 2) + 2;
    } else if (c == '"') {
      const size_t end = text.find('"', at + 1);
      if (end == std::string_view::npos) throw Fault("PTX: a string does not end");
      push(Token::Kind::kString, end + 1);
    } else if (c == '.' && at + 1 < text.size() && in_name(text[at + 1])) {
      size_t end = at + 1;
      while (end < text.size() && in_name(text[end])) ++end;
      if (ends_with_its_line(text.substr(at, end - at))) {
        push(Token::Kind::kLine, std::min(text.find('\n', at), text.size()));
      } else {
        push(Token::Kind::kDirective, end);
      }
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      size_t end = at;
      while (end < text.size() && in_name(text[end])) ++end;
      push(Token::Kind::kNumber, end);
    } else if (in_name(c) || c == '%') {
      push(Token::Kind::kName, name_end(at + 1));
    } else {
      push(Token::Kind::kPunctuation, at + 1);
    }
  }
  push(Token::Kind::kEnd, at);
  return tokens;
}

}  // namespace pyfold::gpu

// JSON that nobody vouches for, as much of it as a `.penjing` file has. Strict: names are there once, text is UTF-8,
// nothing follows. NaN and Infinity are read as numbers, because Python writes them so; whoever wants a number checks.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace penjing::reader {

struct Json {
  enum Kind : uint8_t { kNull, kBool, kInteger, kReal, kString, kArray, kObject };
  using Member = std::pair<std::string, Json>;

  // The member of that name, or null. Only of an object.
  const Json* find(std::string_view name) const;

  Kind kind = kNull;
  bool truth = false;
  int64_t integer = 0;          // kInteger: written without a point, and it fits
  double real = 0.0;            // every number
  std::string text;             // kString, as UTF-8
  std::vector<Json> items;      // kArray
  std::vector<Member> members;  // kObject, sorted by name
};

// Throws Error: "architecture: a comma or ] is missing at byte 17".
Json parse_json(std::string_view text, const char* what);

// A name from a file as it can be shown: short, printable.
std::string shown(std::string_view name);

}  // namespace penjing::reader

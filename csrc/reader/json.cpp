#include "reader/json.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "ops/error.h"

namespace penjing::reader {
namespace {

constexpr int kMaxDepth = 64;  // recursion: a file must not choose how much stack is used
constexpr size_t kMaxNumber = 512;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of the UTF-8 character that begins the text, 0 if it is none (RFC 3629: no overlong forms, no surrogates).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const bool sound =
        follows(1) && follows(2) && (first != 0xe0 || second >= 0xa0) && (first != 0xed || second < 0xa0);
    return sound ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const bool within = (first != 0xf0 || second >= 0x90) && (first != 0xf4 || second < 0x90);
    return follows(1) && follows(2) && follows(3) && within ? 4 : 0;
  }
  return 0;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xe0 | code >> 12);
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    }
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

class Parser {
 public:
  Parser(std::string_view text, const char* what) : text_(text), what_(what) {}

  Json parse() {
    Json out = value(0);
    skip_space();
    if (at_ != text_.size()) refuse("something follows");
    return out;
  }

 private:
  [[noreturn]] void refuse(const char* problem) const {
    fail(PJ_BAD_ARGUMENT, "%s: %s at byte %zu", what_, problem, at_);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++at_;
  }

  bool accept(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kMaxDepth) refuse("too deep");
    skip_space();
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return string();
      default:
        return word();
    }
  }

  Json word() {
    Json out;
    if (accept("null")) return out;
    out.truth = accept("true");
    if (out.truth || accept("false")) {
      out.kind = Json::kBool;
      return out;
    }
    out.kind = Json::kReal;
    if (accept("NaN")) {
      out.real = std::numeric_limits<double>::quiet_NaN();
    } else if (accept("Infinity")) {
      out.real = std::numeric_limits<double>::infinity();
    } else if (accept("-Infinity")) {
      out.real = -std::numeric_limits<double>::infinity();
    } else {
      return number();
    }
    return out;
  }

  void digits() {
    if (!is_digit(peek())) refuse("not a value");
    while (is_digit(peek())) ++at_;
  }

  Json number() {
    const size_t begin = at_;
    accept("-");
    if (!accept("0")) digits();
    bool whole = true;
    if (accept(".")) {
      whole = false;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (!accept("+")) accept("-");
      digits();
    }
    const std::string digits_of_it(text_.substr(begin, at_ - begin));
    if (digits_of_it.size() > kMaxNumber) refuse("too long a number");
    Json out;
    const char* first = digits_of_it.data();
    const char* last = first + digits_of_it.size();
    const bool fits = whole && std::from_chars(first, last, out.integer).ec == std::errc();
    out.kind = fits ? Json::kInteger : Json::kReal;
    if (std::from_chars(first, last, out.real).ec != std::errc()) refuse("a number out of range");
    return out;
  }

  Json string() {
    Json out;
    out.kind = Json::kString;
    ++at_;
    while (peek() != '"' || at_ == text_.size()) {
      if (at_ == text_.size()) refuse("a string without an end");
      if (peek() == '\\') {
        ++at_;
        escape(out.text);
        continue;
      }
      const size_t length = utf8_length(text_.substr(at_));
      if (length == 0) refuse("not UTF-8");
      if (static_cast<unsigned char>(peek()) < 0x20) refuse("a control character in a string");
      out.text.append(text_.substr(at_, length));
      at_ += length;
    }
    ++at_;
    return out;
  }

  void escape(std::string& out) {
    constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char c = peek();
    if (at_ < text_.size()) ++at_;
    const size_t known = kEscapes.find(c);
    if (known != std::string_view::npos) {
      out += kMeant[known];
    } else if (c == 'u') {
      append_utf8(out, code_point());
    } else {
      refuse("an unknown escape");
    }
  }

  uint32_t code_point() {
    const uint32_t first = hex4();
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first > 0xdbff || !accept("\\u")) refuse("half a surrogate pair");
    const uint32_t second = hex4();
    if (second < 0xdc00 || second > 0xdfff) refuse("half a surrogate pair");
    return 0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff);
  }

  uint32_t hex4() {
    const std::string_view four = text_.substr(at_, 4);
    uint32_t code = 0;
    const auto [end, problem] = std::from_chars(four.data(), four.data() + four.size(), code, 16);
    if (four.size() != 4 || problem != std::errc() || end != four.data() + 4) refuse("an unknown escape");
    at_ += 4;
    return code;
  }

  Json array(int depth) {
    Json out;
    out.kind = Json::kArray;
    ++at_;
    skip_space();
    if (accept("]")) return out;
    while (true) {
      out.items.push_back(value(depth + 1));
      skip_space();
      if (accept("]")) return out;
      if (!accept(",")) refuse("a comma or ] is missing");
    }
  }

  Json object(int depth) {
    Json out;
    out.kind = Json::kObject;
    ++at_;
    skip_space();
    if (accept("}")) return out;
    while (true) {
      skip_space();
      if (peek() != '"') refuse("a name is missing");
      std::string name = string().text;
      skip_space();
      if (!accept(":")) refuse("a colon is missing");
      out.members.emplace_back(std::move(name), value(depth + 1));
      skip_space();
      if (accept("}")) break;
      if (!accept(",")) refuse("a comma or } is missing");
    }
    const auto by_name = [](const Json::Member& a, const Json::Member& b) { return a.first < b.first; };
    const auto same_name = [](const Json::Member& a, const Json::Member& b) { return a.first == b.first; };
    std::sort(out.members.begin(), out.members.end(), by_name);
    if (std::adjacent_find(out.members.begin(), out.members.end(), same_name) != out.members.end()) {
      refuse("a name is there twice");
    }
    return out;
  }

  const std::string_view text_;
  const char* const what_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view name) const {
  const auto before = [](const Member& member, std::string_view wanted) { return member.first < wanted; };
  const auto found = std::lower_bound(members.begin(), members.end(), name, before);
  return found != members.end() && found->first == name ? &found->second : nullptr;
}

Json parse_json(std::string_view text, const char* what) { return Parser(text, what).parse(); }

std::string shown(std::string_view name) {
  std::string out(name.substr(0, 64));
  for (char& c : out) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return out;
}

}  // namespace penjing::reader

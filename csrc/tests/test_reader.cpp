// Sound `.penjing` files (from tests/format/make_seeds.py) are damaged in many ways, and what comes out is opened and run,
// or refused with a sentence. For the sanitizers: `test_reader COUNT FILE...`. Mutation n depends on n alone.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "ops/error.h"
#include "penjing_reader.h"
#include "reader/json.h"
#include "tests/check.h"
#include "tests/random_matrix.h"

namespace penjing {
namespace {

using reader::Json;

constexpr const char* kWords[] = {"0",
                                  "1",
                                  "-1",
                                  "2",
                                  "16",
                                  "255",
                                  "65536",
                                  "16777216",
                                  "2147483648",
                                  "4294967296",
                                  "9223372036854775807",
                                  "1.5",
                                  "1e39",
                                  "1e308",
                                  "-0",
                                  "NaN",
                                  "Infinity",
                                  "true",
                                  "null",
                                  "[]",
                                  "{}",
                                  "\"F32\"",
                                  "\"U8\""};

bool accepts(std::string_view text) {
  try {
    reader::parse_json(text, "text");
    return true;
  } catch (const Error&) {
    return false;
  }
}

void test_json() {
  for (const char* text :
       {"0", "-1.5e+3", " [1, 2]\n", "{\"a\":{}}", "\"\\ud83d\\ude00\"", "NaN", "-Infinity", "true"}) {
    check(accepts(text), std::string("JSON ") + text);
  }
  for (const char* text : {"",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "1e",
                           "[1,]",
                           "[1 2]",
                           "{\"a\"}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{\"a\":1,\"a\":2}",
                           "\"\n\"",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u+123\"",
                           "\"\\ud83d\"",
                           "\"\\udc00\"",
                           "\"",
                           "\"\\",
                           "1 2",
                           "nul",
                           "1e999",
                           "-",
                           "\"\xc0\xaf\"",
                           "\"\xed\xa0\x80\"",
                           "\"\xf4\x90\x80\x80\"",
                           "\"\xe2\x82\""}) {
    check(!accepts(text), std::string("not JSON: ") + text);
  }
  check(!accepts(std::string("\"\0\"", 3)), "a zero byte in a string");
  check(accepts(std::string(60, '[') + std::string(60, ']')), "60 deep");
  check(!accepts(std::string(100000, '[')), "100000 deep");
  check(reader::parse_json("\"\\u00e9\\u76c6\\ud83d\\ude00\"", "text").text == "\xc3\xa9\xe7\x9b\x86\xf0\x9f\x98\x80",
        "escapes as UTF-8");
  const Json object = reader::parse_json("{\"b\":-7,\"a\":[1.5,12345678901234567890]}", "text");
  check(object.find("b")->integer == -7 && object.find("b")->kind == Json::kInteger, "an integer");
  check(object.find("a")->items[0].real == 1.5, "a fraction");
  check(object.find("a")->items[1].kind == Json::kReal, "an integer of more than 64 bits is no integer");
  check(!object.find("c") && !object.find(""), "what is not there");
}

std::string with_length(std::string bytes, uint64_t length) {
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(static_cast<unsigned char>(length >> 8 * i));
  return bytes;
}

uint64_t header_length(const std::string& bytes) {
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(bytes[i]);
  return length;
}

bool in_number(char c) { return c >= '0' && c <= '9'; }

// Where a number of the header begins and ends, at or after a random place.
std::pair<size_t, size_t> some_number(Random& random, const std::string& bytes) {
  const size_t end = 8 + header_length(bytes);
  size_t begin = 8 + static_cast<size_t>(random.below(static_cast<int>(end - 8)));
  while (begin < end && in_number(bytes[begin])) ++begin;  // not from the middle of one
  while (begin < end && !in_number(bytes[begin])) ++begin;
  size_t stop = begin;
  while (stop < end && in_number(bytes[stop])) ++stop;
  return {begin, stop};
}

std::string replace_in_header(const std::string& bytes, size_t begin, size_t stop, const std::string& with) {
  const uint64_t length = header_length(bytes) - (stop - begin) + with.size();
  return with_length(bytes.substr(0, begin) + with + bytes.substr(stop), length);
}

// A number becomes another word, its neighbour, or a number from elsewhere in the header.
std::string change_number(Random& random, const std::string& bytes) {
  const auto [begin, stop] = some_number(random, bytes);
  if (begin == stop) return bytes;
  const uint64_t value = std::strtoull(bytes.substr(begin, stop - begin).c_str(), nullptr, 10);
  const auto [other, other_stop] = some_number(random, bytes);
  switch (random.below(4)) {
    case 0:
      return replace_in_header(bytes, begin, stop, kWords[random.below(static_cast<int>(std::size(kWords)))]);
    case 1:
      return replace_in_header(bytes, begin, stop, std::to_string(value + 1));
    case 2:
      return replace_in_header(bytes, begin, stop, std::to_string(value ? value - 1 : 16));
    default:
      return replace_in_header(bytes, begin, stop, bytes.substr(other, other_stop - other));
  }
}

std::string flip(Random& random, std::string bytes) {
  const size_t header_end = 8 + header_length(bytes);
  for (int i = 1 << random.below(4); i > 0; --i) {
    const size_t end = random.below(4) ? header_end : bytes.size();
    const uint8_t special[] = {0, 0x7f, 0xff, '9', '"', ']', '\\', static_cast<uint8_t>(random.next())};
    bytes[random.next() % end] = static_cast<char>(special[random.below(8)]);
  }
  return bytes;
}

std::string resize(Random& random, std::string bytes) {
  bytes.resize(random.below(2) ? random.next() % bytes.size() : bytes.size() + random.next() % 70);
  return bytes;
}

// Infinity and NaN among the numbers of the tensors.
std::string poison(Random& random, std::string bytes) {
  const size_t start = 8 + header_length(bytes);
  const size_t place = start + random.next() % (bytes.size() - start) / 4 * 4;
  for (size_t i = place; i < std::min(place + 4, bytes.size()); ++i) bytes[i] = static_cast<char>(i % 2 ? 0x7f : 0x80);
  return bytes;
}

std::string mutate(Random& random, const std::string& bytes) {
  switch (random.below(10)) {
    case 0:
      return flip(random, bytes);
    case 1:
      return resize(random, bytes);
    case 2:
      return with_length(bytes, random.below(2) ? header_length(bytes) + random.next() % 128 - 64 : random.next());
    case 3:
    case 4:
      return poison(random, bytes);
    case 5:
      return change_number(random, change_number(random, bytes));
    default:
      return change_number(random, bytes);
  }
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Opens and runs it as examples/edge.c does. Whether the reader took it.
bool use(const std::string& bytes) {
  void* memory = nullptr;  // exactly as long as the file, so that a read past its end is seen
  if (posix_memalign(&memory, 64, bytes.empty() ? 1 : bytes.size()) != 0) std::abort();
  const std::unique_ptr<void, Free> owner(memory);
  std::memcpy(memory, bytes.data(), bytes.size());
  pj_file* file = nullptr;
  if (pj_file_parse(memory, bytes.size(), &file) != PJ_OK) {
    check(!file && *pj_file_error(), "an error says something");
    return false;
  }
  pj_model* model = nullptr;
  pj_session* session = nullptr;
  const int vocab_size = pj_file_model(file)->vocab_size;
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  const int32_t tokens[] = {0, vocab_size - 1, vocab_size / 2};
  if (pj_model_create(pj_file_model(file), &model) == PJ_OK &&
      pj_session_create(model, 8, 1, 1, PJ_F16, &session) == PJ_OK) {
    pj_forward(session, tokens, nullptr, 3, logits.data(), 1);
  }
  pj_session_free(session);
  pj_model_free(model);
  pj_file_close(file);
  return true;
}

void test_damaged(const std::vector<std::string>& seeds, int count) {
  int opened = 0;
  for (int n = 0; n < count; ++n) {
    Random random(static_cast<uint64_t>(n));
    const std::string& seed = seeds[static_cast<size_t>(random.below(static_cast<int>(seeds.size())))];
    opened += use(mutate(random, seed));
  }
  std::printf("%d damaged files: %d opened, %d refused\n", count, opened, count - opened);
  // both ends must be reached often, or the mutations are too tame or too wild to find anything
  check(opened > count / 50 && count - opened > count / 4, "mutations reach both ends");
}

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace
}  // namespace penjing

int main(int argc, char** argv) {
  using namespace penjing;
  test_json();
  std::vector<std::string> seeds;
  for (int i = 2; i < argc; ++i) {
    seeds.push_back(read_file(argv[i]));
    check(use(seeds.back()), std::string(argv[i]) + " opens: " + pj_file_error());
  }
  if (seeds.empty() || counts().failed) {
    std::printf("usage: test_reader COUNT FILE... (from tests/format/make_seeds.py)\n");
    return 1;
  }
  test_damaged(seeds, std::atoi(argv[1]));
  std::printf("%d passed, %d failed\n", counts().passed, counts().failed);
  return counts().failed ? 1 : 0;
}

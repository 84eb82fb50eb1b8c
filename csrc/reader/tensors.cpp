#include "reader/tensors.h"

#include <algorithm>
#include <cstring>

#include "reader/fields.h"

namespace penjing::reader {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr const char* kTokenizer = "tokenizer.json.zlib";

// Bytes of an element; 0 for what no `.penjing` file has.
uint64_t element_bytes(const std::string& dtype) {
  if (dtype == "U8" || dtype == "I8") return 1;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return dtype == "F32" ? 4 : 0;
}

std::vector<uint64_t> counts(const Json* json, const std::string& name) {
  std::vector<uint64_t> out;
  bool sound = json && json->kind == Json::kArray;
  for (size_t i = 0; sound && i < json->items.size(); ++i) {
    sound = Fields::is_integer(json->items[i], 0, INT64_MAX);
    out.push_back(static_cast<uint64_t>(json->items[i].integer));
  }
  if (!sound) fail(PJ_BAD_ARGUMENT, "unreadable entry for %s", shown(name).c_str());
  return out;
}

}  // namespace

Tensors::Tensors(Bytes file) {
  if (file.size < 8) fail(PJ_BAD_ARGUMENT, "%zu bytes are too few for a header", static_cast<size_t>(file.size));
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | file.data[i];
  if (length < 2 || length > kMaxHeader || length > file.size - 8) {
    fail(PJ_BAD_ARGUMENT, "a header of %llu bytes in a file of %llu", static_cast<unsigned long long>(length),
         static_cast<unsigned long long>(file.size));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data) + 8, length);
  if (text[0] != '{') fail(PJ_BAD_ARGUMENT, "not a safetensors file");
  Json header = parse_json(text, "header");
  data_ = file.data + 8 + length;
  for (Json::Member& member : header.members) {
    if (member.first == "__metadata__") {
      metadata_ = std::move(member.second);
    } else {
      entries_.emplace(member.first, read_entry(member.second, member.first));
    }
  }
  for (const Json::Member& member : metadata_.members) {
    if (member.second.kind != Json::kString) fail(PJ_BAD_ARGUMENT, "metadata that is not strings");
  }
  check_spans(file.size - 8 - length);
}

Tensors::Entry Tensors::read_entry(const Json& json, const std::string& name) {
  Fields fields(json, shown(name));
  Entry out{fields.string("dtype"), counts(fields.take("shape"), name), 0, 0};
  const std::vector<uint64_t> offsets = counts(fields.take("data_offsets"), name);
  fields.finish();
  uint64_t bytes = element_bytes(out.dtype);
  if (bytes == 0) fail(PJ_BAD_ARGUMENT, "%s: dtype %s", shown(name).c_str(), shown(out.dtype).c_str());
  for (const uint64_t size : out.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) fail(PJ_BAD_ARGUMENT, "%s is too large", shown(name).c_str());
  }
  if (offsets.size() != 2 || offsets[1] < offsets[0] || offsets[1] - offsets[0] != bytes) {
    fail(PJ_BAD_ARGUMENT, "%s: its offsets are not those of its shape", shown(name).c_str());
  }
  out.begin = offsets[0];
  out.end = offsets[1];
  return out;
}

void Tensors::check_spans(uint64_t data_bytes) const {
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const auto& [name, entry] : entries_) spans.emplace_back(entry.begin, entry.end);
  std::sort(spans.begin(), spans.end());
  uint64_t position = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != position) fail(PJ_BAD_ARGUMENT, "tensors %s", begin < position ? "overlap" : "leave a gap");
    position = end;
  }
  if (position != data_bytes) fail(PJ_BAD_ARGUMENT, "tensors do not end where the file ends");
}

const std::string& Tensors::metadata(const char* key) const {
  const Json* found = metadata_.find(key);
  if (!found) fail(PJ_BAD_ARGUMENT, "no %s in the header", key);
  return found->text;
}

const void* Tensors::take(const std::string& name, const char* dtype, std::initializer_list<uint64_t> shape) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail(PJ_BAD_ARGUMENT, "%s is missing", shown(name).c_str());
  const Entry& entry = found->second;
  if (entry.dtype != dtype || !std::equal(shape.begin(), shape.end(), entry.shape.begin(), entry.shape.end())) {
    fail(PJ_BAD_ARGUMENT, "%s is not what the architecture needs", shown(name).c_str());
  }
  const uint8_t* place = data_ + entry.begin;
  if (reinterpret_cast<uintptr_t>(place) % element_bytes(entry.dtype)) {
    fail(PJ_BAD_ARGUMENT, "%s is not aligned", shown(name).c_str());
  }
  entries_.erase(found);
  return place;
}

void Tensors::finish() const {
  for (const auto& [name, entry] : entries_) {
    if (name == kTokenizer && entry.dtype == "U8" && entry.shape.size() == 1) continue;
    fail(PJ_BAD_ARGUMENT, "%s has no place in the architecture", shown(name).c_str());
  }
}

}  // namespace penjing::reader

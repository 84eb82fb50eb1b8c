// The tensors of a safetensors file in memory: where they lie, taken out one by one by whoever knows what they must be.
// https://github.com/huggingface/safetensors#format
#pragma once
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>

#include "reader/json.h"

namespace penjing::reader {

struct Bytes {
  const uint8_t* data;
  uint64_t size;
};

class Tensors {
 public:
  // Throws Error unless the file is sound: tensors follow each other without gaps to the end of the file.
  explicit Tensors(Bytes file);

  // A text of the header's metadata. Throws Error if it is not there.
  const std::string& metadata(const char* key) const;
  size_t count() const { return entries_.size(); }
  bool has(const std::string& name) const { return entries_.count(name) != 0; }
  // The first byte of the tensor, aligned to its elements. Throws Error unless it is just what is said.
  const void* take(const std::string& name, const char* dtype, std::initializer_list<uint64_t> shape);
  // Throws Error if a tensor is left that nobody took, but for a tokenizer.
  void finish() const;

 private:
  struct Entry {
    std::string dtype;
    std::vector<uint64_t> shape;
    uint64_t begin, end;  // after the header
  };
  static Entry read_entry(const Json& json, const std::string& name);
  void check_spans(uint64_t data_bytes) const;

  const uint8_t* data_ = nullptr;
  std::map<std::string, Entry> entries_;
  Json metadata_;
};

}  // namespace penjing::reader

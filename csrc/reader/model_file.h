// A `.penjing` file in memory as the description that the engine takes.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "reader/architecture.h"
#include "reader/tensors.h"

namespace penjing::reader {

class ModelFile {
 public:
  // Throws Error unless the engine can rely on every number and every byte that the description points to.
  explicit ModelFile(Bytes file);
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  const Architecture& architecture() const { return arch_; }
  const pj_model_desc& description() const { return desc_; }

 private:
  void read_metadata();
  void read_layouts(const Json& layouts);
  void describe_sizes();
  void describe_layer(int index);
  pj_matrix matrix(const std::string& name, int rows, int cols);
  pj_norm norm(const std::string& name, int size, bool present, bool bias_known);
  const float* vector(const std::string& name, int size);
  const float* optional_vector(const std::string& name, int size) {
    return tensors_.has(name) ? vector(name, size) : nullptr;
  }

  Tensors tensors_;
  Architecture arch_;
  std::map<std::string, Layout> layouts_;
  std::vector<pj_layer> layers_;
  pj_model_desc desc_{};
};

}  // namespace penjing::reader

// Low-rank additions to matrices (LoRA, arXiv:2106.09685), whose sizes were checked against a model.
#pragma once
#include <vector>

#include "model/model.h"

namespace penjing {

// Matrices of a layer that can have an addition.
constexpr int kNumParts = 7;
constexpr Matrix Layer::* kParts[kNumParts] = {&Layer::q,    &Layer::k,  &Layer::v,   &Layer::o,
                                               &Layer::gate, &Layer::up, &Layer::down};

struct Lora {
  const void* a = nullptr;  // [rank][inputs], of the kind of b
  Matrix b{};               // [outputs, rank]
  int rank = 0;             // 0: none
};

struct AdapterLayer {
  Lora parts[kNumParts];
};

struct Adapter {
  const Model& model;
  std::vector<AdapterLayer> layers;
};

// Throws Error that names the part: "layers.3.down: rank 300, where at most 256 are known".
Adapter check_adapter(const Model& model, const pj_adapter_layer* layers);

}  // namespace penjing

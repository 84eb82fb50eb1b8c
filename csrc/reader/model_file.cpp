#include "reader/model_file.h"

#include <cstring>

#include "reader/fields.h"

namespace penjing::reader {
namespace {

// Bits that are all set in what is infinite or not a number.
constexpr uint32_t kExponent16 = 0x7c00, kExponent32 = 0x7f800000;

template <class Word>
void check_finite(const void* values, uint64_t count, uint32_t exponent, const std::string& name) {
  const uint8_t* bytes = static_cast<const uint8_t*>(values);
  for (uint64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes + i * sizeof word, sizeof word);
    if ((word & exponent) == exponent) fail(PJ_BAD_ARGUMENT, "%s has values that are not finite", name.c_str());
  }
}

Json metadata_json(const Tensors& tensors, const char* key, Json::Kind kind) {
  Json json = parse_json(tensors.metadata(key), key);
  if (json.kind != kind) fail(PJ_BAD_ARGUMENT, "unreadable %s", key);
  return json;
}

// What the engine does not use, but a sound file has.
void check_the_rest(const Tensors& tensors) {
  const Json chat_template = parse_json(tensors.metadata("chat_template"), "chat_template");
  if (chat_template.kind != Json::kNull && chat_template.kind != Json::kString) {
    fail(PJ_BAD_ARGUMENT, "unreadable chat_template");
  }
  metadata_json(tensors, "generation", Json::kObject);
  metadata_json(tensors, "provenance", Json::kObject);
  for (const Json& record : metadata_json(tensors, "evidence", Json::kArray).items) {
    if (record.kind != Json::kObject) fail(PJ_BAD_ARGUMENT, "unreadable evidence");
  }
}

const char* float_dtype(pj_kind kind) { return kind == PJ_F32 ? "F32" : kind == PJ_F16 ? "F16" : "BF16"; }

}  // namespace

ModelFile::ModelFile(Bytes file) : tensors_(file) {
  read_metadata();
  describe_sizes();
  const bool layer_norm = arch_.norm != 0;
  desc_.embed = matrix("embed", arch_.vocab_size, arch_.hidden_size);
  if (!arch_.tied) desc_.head = matrix("head", arch_.vocab_size, arch_.hidden_size);
  desc_.final_norm = norm("final_norm", arch_.hidden_size, true, layer_norm);
  layers_.resize(static_cast<size_t>(arch_.num_layers));
  for (int i = 0; i < arch_.num_layers; ++i) describe_layer(i);
  desc_.layers = layers_.data();
  tensors_.finish();
  if (!layouts_.empty()) {
    fail(PJ_BAD_ARGUMENT, "%s has a layout but no place in the architecture", shown(layouts_.begin()->first).c_str());
  }
}

void ModelFile::read_metadata() {
  if (tensors_.metadata("format") != "penjing") fail(PJ_BAD_ARGUMENT, "not a .penjing file");
  if (tensors_.metadata("version") != "1") fail(PJ_BAD_ARGUMENT, "an unknown version of the format");
  arch_ = read_architecture(metadata_json(tensors_, "architecture", Json::kObject));
  if (static_cast<size_t>(arch_.num_layers) > tensors_.count()) fail(PJ_BAD_ARGUMENT, "layers are missing");
  for (const Json::Member& member : metadata_json(tensors_, "layouts", Json::kObject).members) {
    layouts_.emplace(member.first, read_layout(member.second, member.first));
  }
  check_the_rest(tensors_);
}

void ModelFile::describe_sizes() {
  desc_.struct_size = sizeof desc_;
  desc_.vocab_size = arch_.vocab_size;
  desc_.hidden_size = arch_.hidden_size;
  desc_.intermediate_size = arch_.intermediate_size;
  desc_.num_layers = arch_.num_layers;
  desc_.num_heads = arch_.num_heads;
  desc_.num_kv_heads = arch_.num_kv_heads;
  desc_.head_dim = arch_.head_dim;
  desc_.layer_norm = arch_.norm;
  desc_.qk_norm = arch_.qk_norm;
  desc_.parallel = arch_.parallel;
  desc_.activation = arch_.activation;
  desc_.norm_eps = arch_.norm_eps;
  desc_.attention_scale = arch_.attention_scale;
  desc_.embedding_scale = arch_.embedding_scale;
  desc_.residual_scale = arch_.residual_scale;
  desc_.logit_scale = arch_.logit_scale;
  desc_.num_ropes = static_cast<int32_t>(arch_.ropes.size());
  for (size_t i = 0; i < arch_.ropes.size(); ++i) {
    const Rope& rope = arch_.ropes[i];
    desc_.ropes[i] = {rope.inv_freq.data(), static_cast<int32_t>(2 * rope.inv_freq.size()), rope.scale};
  }
}

void ModelFile::describe_layer(int index) {
  const std::string prefix = "layers." + std::to_string(index) + ".";
  const auto block_norm = [&](const char* part, bool present) {
    return norm(prefix + part, arch_.hidden_size, present, arch_.norm != 0);
  };
  const auto head_norm = [&](const char* part, int all_heads) {
    return norm(prefix + part, arch_.qk_norm == 1 ? arch_.head_dim : all_heads, arch_.qk_norm != 0, false);
  };
  const auto linear = [&](const char* part, int rows, int cols) { return matrix(prefix + part, rows, cols); };
  const int hidden = arch_.hidden_size, inner = arch_.intermediate_size;
  pj_layer& layer = layers_[static_cast<size_t>(index)];
  layer.attn_norm = block_norm("attn_norm", arch_.pre_norm);
  layer.mlp_norm = block_norm("mlp_norm", arch_.pre_norm);
  layer.attn_post_norm = block_norm("attn_post_norm", arch_.post_norm);
  layer.mlp_post_norm = block_norm("mlp_post_norm", arch_.post_norm);
  layer.q_norm = head_norm("q_norm", arch_.q_size());
  layer.k_norm = head_norm("k_norm", arch_.kv_size());
  layer.q = linear("q", arch_.q_size(), hidden);
  layer.k = linear("k", arch_.kv_size(), hidden);
  layer.v = linear("v", arch_.kv_size(), hidden);
  layer.o = linear("o", hidden, arch_.q_size());
  if (arch_.gated) layer.gate = linear("gate", inner, hidden);
  layer.up = linear("up", inner, hidden);
  layer.down = linear("down", hidden, inner);
  layer.rope = arch_.layer_rope[static_cast<size_t>(index)];
  layer.window = arch_.layer_window[static_cast<size_t>(index)];
}

pj_matrix ModelFile::matrix(const std::string& name, int rows, int cols) {
  const auto found = layouts_.find(name);
  if (found == layouts_.end()) fail(PJ_BAD_ARGUMENT, "%s has no layout", name.c_str());
  const Layout layout = found->second;
  layouts_.erase(found);
  if (layout.rows != rows || layout.cols != cols) {
    fail(PJ_BAD_ARGUMENT, "%s is %d x %d, the architecture says %d x %d", name.c_str(), layout.rows, layout.cols, rows,
         cols);
  }
  pj_matrix out{};
  out.kind = layout.kind;
  out.rows = rows;
  out.cols = cols;
  out.bits = layout.bits;
  out.group_size = layout.group_size;
  out.levels = layout.levels;
  const uint64_t panels = layout.num_panels(), inputs = static_cast<uint64_t>(cols);
  if (layout.kind == PJ_CODES) {
    const uint64_t groups = layout.num_groups();
    out.data = tensors_.take(name + ".codes", "U8", {panels, layout.panel_bytes()});
    out.scale_bits = layout.scale_bits;
    const bool halves = layout.scale_bits == 16;  // what 8 bits can say is finite
    out.scales = tensors_.take(name + ".scales", halves ? "F16" : "U8", {panels, groups, PJ_LANES});
    if (halves) check_finite<uint16_t>(out.scales, panels * groups * PJ_LANES, kExponent16, name + ".scales");
    if (!layout.symmetric) out.zeros = tensors_.take(name + ".zeros", "U8", {panels, groups, PJ_LANES});
    if (const uint64_t entries = layout.book_size()) {
      out.book = static_cast<const int8_t*>(tensors_.take(name + ".book", "I8", {entries}));
    }
  } else {
    out.data = tensors_.take(name + ".weight", float_dtype(layout.kind), {panels, inputs, PJ_LANES});
  }
  if (name != "embed") out.bias = optional_vector(name + ".bias", rows);
  return out;
}

pj_norm ModelFile::norm(const std::string& name, int size, bool present, bool bias_known) {
  if (!present) return {nullptr, nullptr};
  const float* weight = vector(name, size);
  return {weight, bias_known ? optional_vector(name + ".bias", size) : nullptr};
}

const float* ModelFile::vector(const std::string& name, int size) {
  const uint64_t count = static_cast<uint64_t>(size);
  const void* values = tensors_.take(name, "F32", {count});
  check_finite<uint32_t>(values, count, kExponent32, name);
  return static_cast<const float*>(values);
}

}  // namespace penjing::reader

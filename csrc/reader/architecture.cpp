#include "reader/architecture.h"

#include <cmath>

#include "reader/fields.h"

namespace penjing::reader {
namespace {

constexpr double kMaxScale = 1e6;
constexpr int kMaxGroup = 1 << 16;
constexpr const char* kNorms[] = {"rms", "layer"};
constexpr const char* kQkNorms[] = {"none", "head", "full"};
constexpr const char* kActivations[] = {"silu", "gelu", "gelu_tanh"};
constexpr const char* kKinds[] = {"codes", "f32", "f16", "bf16"};
constexpr const char* kLevels[] = {"uniform", "ternary", "book"};

void check_levels(const Layout& layout, const Fields& fields) {
  constexpr int kLeast[] = {1, 2, 2}, kMost[] = {8, 2, 4};  // bits
  if (layout.bits < kLeast[layout.levels] || layout.bits > kMost[layout.levels] || layout.bits == 7) {
    fields.refuse("bits");
  }
  if (!layout.symmetric && (layout.levels != PJ_UNIFORM || layout.bits == 1)) fields.refuse("symmetric");
}

float scale(Fields& fields, const char* name, double value) {
  if (!(std::fabs(value) < kMaxScale)) fields.refuse(name);  // also NaN
  return static_cast<float>(value);
}

std::vector<int> integers(Fields& fields, const char* name, int low, int high) {
  std::vector<int> out;
  for (const Json& item : fields.array(name)) {
    if (!Fields::is_integer(item, low, high)) fields.refuse(name);
    out.push_back(static_cast<int>(item.integer));
  }
  return out;
}

Rope read_rope(const Json& json, int head_dim) {
  Fields fields(json, "rope");
  Rope out;
  for (const Json& item : fields.array("inv_freq")) {
    if ((item.kind != Json::kInteger && item.kind != Json::kReal) || !std::isfinite(item.real)) {
      fields.refuse("inv_freq");
    }
    out.inv_freq.push_back(static_cast<float>(item.real));
  }
  if (out.inv_freq.empty() || out.inv_freq.size() > static_cast<size_t>(head_dim / 2)) fields.refuse("inv_freq");
  const double factor = fields.number("scale");
  if (!std::isfinite(factor)) fields.refuse("scale");
  out.scale = static_cast<float>(factor);
  return out;
}

void read_sizes(Fields& fields, Architecture& arch) {
  arch.vocab_size = fields.integer("vocab_size", 1, kMaxSize);
  arch.hidden_size = fields.integer("hidden_size", 1, kMaxSize);
  arch.intermediate_size = fields.integer("intermediate_size", 1, kMaxSize);
  arch.num_layers = fields.integer("num_layers", 1, kMaxSize);
  arch.num_heads = fields.integer("num_heads", 1, kMaxSize);
  arch.num_kv_heads = fields.integer("num_kv_heads", 1, kMaxSize);
  arch.head_dim = fields.integer("head_dim", 2, kMaxSize);
  fields.integer("max_position_embeddings", 1, kMaxSize);
  if (static_cast<int64_t>(arch.num_heads) * arch.head_dim > kMaxSize) fields.refuse("num_heads");
  if (arch.num_heads % arch.num_kv_heads) fields.refuse("num_kv_heads");
}

void read_scales(Fields& fields, Architecture& arch) {
  arch.norm_eps = scale(fields, "norm_eps", fields.number_or("norm_eps", 1e-5));
  arch.attention_scale = scale(fields, "attention_scale", fields.number("attention_scale"));
  arch.embedding_scale = scale(fields, "embedding_scale", fields.number_or("embedding_scale", 1.0));
  arch.residual_scale = scale(fields, "residual_scale", fields.number_or("residual_scale", 1.0));
  arch.logit_scale = scale(fields, "logit_scale", fields.number_or("logit_scale", 1.0));
}

void read_layers(Fields& fields, Architecture& arch) {
  for (const Json& rope : fields.array("ropes")) {
    arch.ropes.push_back(read_rope(rope, arch.head_dim));
    if (arch.ropes.size() > PJ_MAX_ROPES) fields.refuse("ropes");
  }
  arch.layer_rope = integers(fields, "layer_rope", -1, static_cast<int>(arch.ropes.size()) - 1);
  arch.layer_window = integers(fields, "layer_window", 0, kMaxSize);
  const size_t layers = static_cast<size_t>(arch.num_layers);
  if (arch.layer_rope.size() != layers) fields.refuse("layer_rope");
  if (arch.layer_window.size() != layers) fields.refuse("layer_window");
}

}  // namespace

Architecture read_architecture(const Json& json) {
  Fields fields(json, "architecture");
  Architecture arch{};
  fields.string("model_type");
  read_sizes(fields, arch);
  arch.tied = fields.truth("tied");
  arch.pre_norm = fields.truth_or("pre_norm", true);
  arch.post_norm = fields.truth_or("post_norm", false);
  arch.parallel = fields.truth_or("parallel", false);
  arch.gated = fields.truth_or("gated", true);
  arch.norm = fields.choice("norm", kNorms);
  arch.qk_norm = fields.choice("qk_norm", kQkNorms);
  arch.activation = fields.choice("activation", kActivations);
  read_scales(fields, arch);
  read_layers(fields, arch);
  arch.eos_tokens = integers(fields, "eos_token_ids", 0, kMaxSize);
  const Json* bos = fields.take("bos_token_id");
  const bool none = !bos || bos->kind == Json::kNull;
  if (!none && !Fields::is_integer(*bos, 0, kMaxSize)) fields.refuse("bos_token_id");
  arch.bos_token = none ? -1 : static_cast<int32_t>(bos->integer);
  fields.finish();
  return arch;
}

uint64_t Layout::panel_bytes() const {
  const uint64_t stride = (static_cast<uint64_t>(group_size) + PJ_LANES - 1) / PJ_LANES * PJ_LANES;
  if (levels == PJ_TERNARY) {
    const uint64_t units = num_groups() * stride / 16;
    return 64 * (units / 5 * 4 + units % 5);
  }
  return num_groups() * stride * PJ_LANES * static_cast<uint64_t>(bits) / 8;
}

Layout read_layout(const Json& json, const std::string& name) {
  Fields fields(json, "layout of " + shown(name));
  Layout out{};
  fields.require("kind");
  out.kind = static_cast<pj_kind>(PJ_CODES + fields.choice("kind", kKinds));
  out.rows = fields.integer("rows", 1, kMaxSize);
  out.cols = fields.integer("cols", 1, kMaxSize);
  out.bits = fields.integer_or("bits", 0, 8, 0);
  out.group_size = fields.integer_or("group_size", 0, kMaxGroup, 0);
  out.symmetric = fields.truth_or("symmetric", true);
  out.levels = static_cast<pj_levels>(fields.choice("levels", kLevels));
  out.scale_bits = fields.integer_or("scale_bits", 8, 16, 16);
  fields.finish();
  if (out.kind == PJ_CODES) {
    check_levels(out, fields);
    if (out.scale_bits != 8 && out.scale_bits != 16) fields.refuse("scale_bits");
    if (out.group_size < 1 || out.cols % out.group_size) fields.refuse("group_size");
  } else if (out.bits || out.group_size || out.levels || out.scale_bits != 16) {
    fields.refuse("kind");
  }
  return out;
}

}  // namespace penjing::reader

// The end of a forward pass: final norm and logits.
#include <cstring>

#include "model/pass.h"

namespace penjing {
namespace {

bool all_finite(const float* x, int size) {
  uint32_t bad = 0;
  for (int i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

// What x [cols] has beyond its codes.
void subtract_codes(const QuantizedColumns& codes, const Matrix& reader, float* x) {
  for (int g = 0; g < reader.num_groups; ++g) {
    const int8_t* code = codes.code + static_cast<size_t>(g) * reader.stride;
    const float scale = codes.scale[static_cast<size_t>(g) * codes.ld];
    for (int i = 0; i < reader.group_size; ++i) *x++ -= static_cast<float>(code[i]) * scale;
  }
}

}  // namespace

// A column that is not finite would spoil the cache for all that follow it.
void Pass::require_finite(Range columns) {
  const int hidden = model_.hidden_size;
  for (int c = columns.begin; c < columns.end; ++c) {
    if (!all_finite(column(work_.x, hidden, c), hidden)) call_.not_finite.store(true, std::memory_order_relaxed);
  }
}

// Logits of the columns whose are asked for.
void Pass::finish() {
  require_finite(mine_);
  const Range wanted = this->wanted();
  if (wanted.empty()) return;
  const Range columns = intersect(mine_, wanted);
  norm_columns(model_.final_norm, columns);
  prepare_head(columns);
  const int done = first_ + wanted.begin - (call_.num_columns - call_.num_logits);
  float* logits = call_.logits + static_cast<size_t>(done) * model_.vocab_size;
  share_out(model_.head.num_panels, [&](Range panels) { write_logits(panels, wanted, logits); });
}

// The head reads its input as two columns of 8-bit codes, the second for what the first left over: 8 bits alone cost
// SmolLM2-135M 0.24% in perplexity, half of what they cost it altogether. Prompts do not feel it, their head is read
// for one token; decoding hardly does, the weights are read once for both.
void Pass::prepare_head(Range columns) {
  const Matrix& head = model_.head;
  const int hidden = model_.hidden_size;
  input_ = work_.normed;
  if (head.kind == PJ_CODES) {
    for (int c = columns.begin; c < columns.end; ++c) {
      float* x = column(work_.normed, hidden, c);
      const QuantizedColumns first = work_.head.from(head, 2 * c);
      kernels_.quantize_columns(x, 1, hidden, head.group_size, first);
      subtract_codes(first, head, x);
      kernels_.quantize_columns(x, 1, hidden, head.group_size, work_.head.from(head, 2 * c + 1));
    }
  }
  if (!alone_) barrier();
}

void Pass::write_logits(Range panels, Range wanted, float* logits) {
  const int rounds = model_.head.kind == PJ_CODES ? 2 : 1;
  const int tile = std::max(1, kLogitTile / (PJ_LANES * rounds * wanted.size()));
  for (int begin = panels.begin; begin < panels.end; begin += tile) {
    Matrix part = panels_of(model_.head, begin, std::min(begin + tile, panels.end));
    const float* bias = part.bias;
    part.bias = nullptr;  // once a token, not once a round
    const int ld = part.num_panels * PJ_LANES;
    if (rounds == 2) {
      kernels_.linear_codes(part, 0, part.num_panels, work_.head.from(part, 2 * wanted.begin), 2 * wanted.size(),
                            buffers_.logits, ld, buffers_.scratch);
    } else {
      multiply(part, wanted.begin, wanted.size(), buffers_.logits, ld);
    }
    for (int c = 0; c < wanted.size(); ++c) {
      float* row = column(buffers_.logits, ld, rounds * c);
      if (rounds == 2) kernels_.add_scaled(row + ld, 1.0f, part.rows, row);
      if (bias) kernels_.add_scaled(bias, 1.0f, part.rows, row);
      if (model_.logit_scale != 1.0f) scale(row, model_.logit_scale, part.rows);
      if (!all_finite(row, part.rows)) call_.not_finite.store(true, std::memory_order_relaxed);
      std::memcpy(column(logits, model_.vocab_size, c) + begin * PJ_LANES, row, sizeof(float) * part.rows);
    }
  }
}

}  // namespace penjing

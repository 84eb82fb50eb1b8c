// The C ABI: exceptions become a status and a sentence, nothing else happens here.
#include <algorithm>
#include <memory>
#include <vector>

#include "model/model.h"
#include "model/probe.h"
#include "model/session.h"
#include "ops/error.h"
#include "ops/guard.h"
#include "ops/range.h"

struct pj_model {
  penjing::Model model;
};

struct pj_session {
  penjing::Session session;
};

struct pj_adapter {
  penjing::Adapter adapter;
};

namespace {

using penjing::Error;
using penjing::fail;

constexpr int kMaxThreads = 1024;
constexpr int kMaxSequences = 1024;
constexpr size_t kMinProbeBytes = 4096;
constexpr int kMaxContext = 1 << 24;  // positions are exact as float32

thread_local char last_error[256] = "";

template <class Body>
int guarded(Body body) noexcept {
  return penjing::guarded_by(last_error, body);
}

void check_threads(int num_threads) {
  if (num_threads < 1 || num_threads > kMaxThreads) fail(PJ_BAD_ARGUMENT, "%d threads", num_threads);
}

// y [column][rows] from panels padded to [column][16 * panels].
void linear(const pj_matrix& description, const float* x, int num_columns, int num_threads, float* y) {
  using namespace penjing;
  const Matrix m = check_matrix("matrix", description);
  if (!present(m)) fail(PJ_BAD_ARGUMENT, "matrix: absent");
  const Kernels& kernels = penjing::kernels();
  const size_t columns = static_cast<size_t>(num_columns), rows = static_cast<size_t>(m.rows);
  const size_t groups = columns * m.num_groups, ld = static_cast<size_t>(m.num_panels) * PJ_LANES;

  Arena arena;
  QuantizedColumns quantized;
  float* padded_y;
  std::vector<uint8_t*> scratch(static_cast<size_t>(num_threads));
  const auto lay_out = [&] {
    quantized = {arena.take<int8_t>(groups * m.stride), arena.take<float>(groups), arena.take<int32_t>(groups),
                 num_columns};
    padded_y = arena.take<float>(columns * ld);
    for (uint8_t*& s : scratch) s = arena.take<uint8_t>(linear_scratch_bytes(m));
  };
  lay_out();
  arena.allocate();
  lay_out();
  if (m.kind == PJ_CODES) kernels.quantize_columns(x, num_columns, m.cols, m.group_size, quantized);
  Team(num_threads).run([&](int thread) {
    const Range panels = split(m.num_panels, num_threads, thread);
    void* own = scratch[static_cast<size_t>(thread)];
    if (panels.empty()) return;
    if (m.kind == PJ_CODES) {
      kernels.linear_codes(m, panels.begin, panels.end, quantized, num_columns, padded_y, ld, own);
    } else {
      kernels.linear_float(m, panels.begin, panels.end, x, num_columns, padded_y, ld);
    }
  });
  for (size_t c = 0; c < columns; ++c) std::copy_n(padded_y + c * ld, rows, y + c * rows);
}

}  // namespace

extern "C" {

int pj_abi_version(void) { return PJ_ABI_VERSION; }

const char* pj_last_error(void) { return last_error; }

const char* pj_isa(void) {
  const char* name = nullptr;
  guarded([&] { name = penjing::kernels().name; });
  return name;
}

int pj_model_create(const pj_model_desc* desc, pj_model** out) {
  return guarded([&] {
    if (!desc || !out) fail(PJ_BAD_ARGUMENT, "a null pointer");
    *out = nullptr;
    penjing::kernels();  // an ISA that cannot run here is found now
    *out = new pj_model{penjing::check_model(*desc)};
  });
}

void pj_model_free(pj_model* model) { delete model; }

int pj_session_create(const pj_model* model, int max_context, int num_sequences, int num_threads, int kv_kind,
                      pj_session** out) {
  return guarded([&] {
    if (!model || !out) fail(PJ_BAD_ARGUMENT, "a null pointer");
    *out = nullptr;
    if (max_context < 1 || max_context > kMaxContext) fail(PJ_BAD_ARGUMENT, "a context of %d", max_context);
    if (num_sequences < 1 || num_sequences > kMaxSequences) fail(PJ_BAD_ARGUMENT, "%d sequences", num_sequences);
    check_threads(num_threads);
    if (kv_kind == PJ_ABSENT) kv_kind = usual_kv_kind(model->model);
    if (kv_kind != PJ_F32 && kv_kind != PJ_F16 && kv_kind != PJ_I8)
      fail(PJ_BAD_ARGUMENT, "keys and values of kind %d", kv_kind);
    *out = new pj_session{{model->model, max_context, num_sequences, num_threads, static_cast<pj_kind>(kv_kind)}};
  });
}

void pj_session_free(pj_session* session) { delete session; }

size_t pj_session_bytes(const pj_session* session) { return session ? session->session.bytes() : 0; }

int pj_session_length(const pj_session* session, int sequence) {
  if (!session || sequence < 0 || sequence >= session->session.num_sequences) return 0;
  return session->session.lengths[static_cast<size_t>(sequence)];
}

int pj_session_least(const pj_session* session, int sequence) {
  if (!session || sequence < 0 || sequence >= session->session.num_sequences) return 0;
  return session->session.least[static_cast<size_t>(sequence)];
}

int pj_session_truncate(pj_session* session, int sequence, int length) {
  return guarded([&] {
    if (!session) fail(PJ_BAD_ARGUMENT, "a null pointer");
    penjing::truncate(session->session, sequence, length);
  });
}

int pj_session_fork(pj_session* session, int from, int to, int length) {
  return guarded([&] {
    if (!session) fail(PJ_BAD_ARGUMENT, "a null pointer");
    penjing::fork(session->session, from, to, length);
  });
}

int pj_adapter_create(const pj_model* model, const pj_adapter_layer* layers, pj_adapter** out) {
  return guarded([&] {
    if (!model || !out) fail(PJ_BAD_ARGUMENT, "a null pointer");
    *out = nullptr;
    *out = new pj_adapter{penjing::check_adapter(model->model, layers)};
  });
}

void pj_adapter_free(pj_adapter* adapter) { delete adapter; }

int pj_session_use_adapter(pj_session* session, int sequence, const pj_adapter* adapter) {
  return guarded([&] {
    if (!session) fail(PJ_BAD_ARGUMENT, "a null pointer");
    penjing::use_adapter(session->session, sequence, adapter ? &adapter->adapter : nullptr);
  });
}

size_t pj_session_state_bytes(const pj_session* session, int length, int least) {
  return session ? penjing::state_bytes(session->session, length, least) : 0;
}

int pj_session_export(const pj_session* session, int sequence, void* state) {
  return guarded([&] {
    if (!session || !state) fail(PJ_BAD_ARGUMENT, "a null pointer");
    penjing::export_state(session->session, sequence, static_cast<uint8_t*>(state));
  });
}

int pj_session_import(pj_session* session, int sequence, const void* state, int length, int least) {
  return guarded([&] {
    if (!session || !state) fail(PJ_BAD_ARGUMENT, "a null pointer");
    penjing::import_state(session->session, sequence, static_cast<const uint8_t*>(state), length, least);
  });
}

int pj_forward(pj_session* session, const int32_t* tokens, const int32_t* sequences, int num_tokens, float* logits,
               int num_logits) {
  return guarded([&] {
    if (!session) fail(PJ_BAD_ARGUMENT, "a null pointer");
    penjing::forward(session->session, tokens, sequences, num_tokens, logits, num_logits);
  });
}

void pj_session_cancel(pj_session* session) {
  if (session) session->session.cancelled.store(true, std::memory_order_relaxed);
}

double pj_probe_read(size_t buffer_bytes, int num_threads, int repeats) {
  double bytes_per_s = 0.0;
  guarded([&] {
    check_threads(num_threads);
    if (buffer_bytes / kMinProbeBytes < static_cast<size_t>(num_threads)) fail(PJ_BAD_ARGUMENT, "too small a buffer");
    bytes_per_s = penjing::probe_read(buffer_bytes, num_threads, repeats);
  });
  return bytes_per_s;
}

double pj_probe_int8(int num_threads, int repeats) {
  double per_s = 0.0;
  guarded([&] {
    check_threads(num_threads);
    per_s = penjing::probe_int8(num_threads, repeats);
  });
  return per_s;
}

int pj_linear(const pj_matrix* matrix, const float* x, int num_columns, int num_threads, float* y) {
  return guarded([&] {
    if (!matrix || !x || !y) fail(PJ_BAD_ARGUMENT, "a null pointer");
    if (num_columns < 1) fail(PJ_BAD_ARGUMENT, "%d columns", num_columns);
    check_threads(num_threads);
    linear(*matrix, x, num_columns, num_threads, y);
  });
}

}  // extern "C"

/* penjing's engine: a decoder on a CPU behind a small C ABI.
 *
 * The caller owns every array that a pj_matrix or pj_model_desc points to and keeps it mapped until pj_model_free.
 * The engine parses nothing: sizes are checked against each other here, bytes were checked by whoever mapped them.
 * Functions that can fail return 0 for success, else a pj_status, and leave a sentence in pj_last_error()
 * (of the calling thread). Nothing is allocated in pj_forward.
 *
 * Layout of weights: rows come in panels of 16 (PJ_LANES), the last one padded with zero rows.
 *   float:  [panel][input][16]
 *   codes:  inputs come in groups; a group of G inputs is padded to S = round_up(G, 16) inputs of code 0.
 *           [panel][group]{plane, plane...}; a plane of b bits holds, for each block of 4 inputs, 64 entries,
 *           entry 4 * lane + input:
 *             8 bits: 64 bytes a block        4 bits: 64 bytes two blocks, the first in the low nibbles
 *             2 bits: 64 bytes four blocks, the first in the lowest bits        1 bit: 8 bytes a block, lowest bit first
 *           3 bits are a plane of 2 and one of 1 (its bit worth 4), 5 are 4 + 1 (worth 16), 6 are 4 + 2 (worth 16).
 *   scales: [panel][group][16], float16 or, of 8 bits, those float16 of which sign, the lower four bits of the exponent
 *           and the upper three of the mantissa say all: these, in that order, in a byte; up to 1.875
 *   zeros: uint8 [panel][group][16], absent: 2^(bits-1) everywhere
 *   weight = (code - zero) * scale; of 1 bit, which has no zeros, (2 code - 1) * scale
 * What codes may stand for instead (pj_levels), without zeros:
 *   PJ_BOOK:    weight = book[code] * scale; 2, 3 or 4 bits, stored as above.
 *   PJ_TERNARY: weight = (code - 1) * scale; codes 0, 1, 2 in five digits a byte, bits is 2. [panel]{five units}: a unit
 *               is 4 blocks (16 inputs), and units go on from group to group. Of five, unit k < 4 has 64 bytes, one for
 *               each entry, with its four blocks in the last four digits; the first digits of the four times 64 bytes
 *               are the four blocks of the fifth unit. The last five of a panel may be n < 5, which have n times 64
 *               bytes. A byte is ceil(256 v / 243), v = 81 d0 + 27 d1 + 9 d2 + 3 d3 + d4: so 3 times a byte is the next
 *               digit in bits 8 and 9, and below it what follows.
 */
#ifndef PENJING_H
#define PENJING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PJ_ABI_VERSION 7
#define PJ_LANES 16
#define PJ_MAX_ROPES 8
#define PJ_MAX_RANK 256
#define PJ_WAY_BACK 256 /* tokens, see pj_session_least */

#if defined(__GNUC__)
#define PJ_API __attribute__((visibility("default")))
#else
#define PJ_API
#endif

/* clang-format off */
typedef enum { PJ_OK = 0, PJ_BAD_ARGUMENT = 1, PJ_OUT_OF_MEMORY = 2, PJ_CANCELLED = 3, PJ_NOT_FINITE = 4, PJ_CONTEXT_FULL = 5, PJ_FORGOTTEN = 6 } pj_status;
typedef enum { PJ_ABSENT = 0, PJ_CODES = 1, PJ_F32 = 2, PJ_F16 = 3, PJ_BF16 = 4, PJ_I8 = 5 } pj_kind;
typedef enum { PJ_UNIFORM = 0, PJ_TERNARY = 1, PJ_BOOK = 2 } pj_levels;
typedef enum { PJ_SILU = 0, PJ_GELU = 1, PJ_GELU_TANH = 2 } pj_activation;

typedef struct {
  const void* data;    /* codes or floats, see above */
  const void* scales;  /* PJ_CODES only */
  const void* zeros;   /* PJ_CODES only, may be NULL */
  const float* bias;   /* [rows], may be NULL */
  const int8_t* book;  /* PJ_BOOK only: [2^bits] */
  int32_t kind;        /* pj_kind */
  int32_t rows, cols;  /* outputs, inputs */
  int32_t bits;        /* PJ_CODES: 1, 2, 3, 4, 5, 6, 8 */
  int32_t group_size;  /* PJ_CODES: divides cols */
  int32_t levels;      /* PJ_CODES: pj_levels */
  int32_t scale_bits;  /* PJ_CODES: 16 or 8 */
} pj_matrix;

typedef struct {
  const float* weight; /* NULL: this norm is absent */
  const float* bias;   /* LayerNorm only, may be NULL */
} pj_norm;

typedef struct {
  pj_norm attn_norm, q_norm, k_norm, attn_post_norm, mlp_norm, mlp_post_norm;
  pj_matrix q, k, v, o, gate, up, down; /* gate absent: plain MLP */
  int32_t rope;                         /* index into ropes, -1: none */
  int32_t window;                       /* positions a query sees, its own included; 0: all */
} pj_layer;

typedef struct {
  const float* inv_freq; /* [rotary_dim / 2] */
  int32_t rotary_dim;
  float scale;
} pj_rope;

typedef struct {
  uint32_t struct_size; /* sizeof(pj_model_desc) */
  int32_t vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
  int32_t layer_norm;   /* 0: RMSNorm, 1: LayerNorm */
  int32_t qk_norm;      /* 0: none, 1: each head, 2: all heads at once */
  int32_t parallel;     /* attention and MLP read the same residual */
  int32_t activation;   /* pj_activation */
  int32_t num_ropes;
  float norm_eps, attention_scale, embedding_scale, residual_scale, logit_scale;
  pj_rope ropes[PJ_MAX_ROPES];
  pj_matrix embed, head; /* head absent: tied to embed */
  pj_norm final_norm;
  const pj_layer* layers; /* [num_layers], copied */
} pj_model_desc;

/* A low-rank addition to a matrix: y += B (A x), x as it is before it is rounded to 8 bits. */
typedef struct {
  const void* a; /* [rank][inputs], input after input */
  const void* b; /* panels of float, see above: [panel][rank][16], what scales the addition multiplied in */
  int32_t kind;  /* PJ_F32 or PJ_F16, of both */
  int32_t rank;  /* up to PJ_MAX_RANK; 0: this matrix is left as it is */
} pj_lora;

typedef struct {
  pj_lora q, k, v, o, gate, up, down;
} pj_adapter_layer;

typedef struct pj_adapter pj_adapter;
typedef struct pj_model pj_model;
typedef struct pj_session pj_session;

PJ_API int pj_abi_version(void);
PJ_API const char* pj_last_error(void);
/* Kernels in use: "scalar", "sse41", "avx2", "avxvnni", "avx512vnni", "avx512amx", "neon" or "neon_i8mm". Environment
 * PENJING_ISA forces one; NULL where it cannot. */
PJ_API const char* pj_isa(void);

PJ_API int pj_model_create(const pj_model_desc* desc, pj_model** out);
PJ_API void pj_model_free(pj_model* model); /* its sessions first */

/* A session holds num_sequences sequences of up to max_context tokens, numbered from 0, which know nothing of each
 * other. kv_kind: PJ_F32, PJ_F16, or PJ_I8: 8-bit codes and a scale for each position and head; PJ_ABSENT: PJ_I8, but
 * PJ_F16 where keys have a bias, whose few large entries would leave the others no steps. All memory a session ever
 * needs is allocated here; what a sequence does not use is never touched. A layer with a window keeps what its window
 * and PJ_WAY_BACK tokens need, not max_context positions. */
PJ_API int pj_session_create(const pj_model* model, int max_context, int num_sequences, int num_threads, int kv_kind,
                             pj_session** out);
PJ_API void pj_session_free(pj_session* session);
PJ_API size_t pj_session_bytes(const pj_session* session);
/* Tokens that a sequence holds, 0 where there is no such sequence. */
PJ_API int pj_session_length(const pj_session* session, int sequence);
/* The fewest tokens, none apart, that a sequence can be cut to; 0: any number. Once it is longer than a layer with a
 * window keeps, that is PJ_WAY_BACK less than the longest it has been since it was empty, a fork and an import taking
 * it over from where they come from. Truncating or forking to fewer is PJ_FORGOTTEN, and changes nothing. */
PJ_API int pj_session_least(const pj_session* session, int sequence);
/* Forget all but the first `length` tokens. */
PJ_API int pj_session_truncate(pj_session* session, int sequence, int length);
/* Sequence `to` becomes the first `length` tokens of sequence `from`, as if it had been given them. */
PJ_API int pj_session_fork(pj_session* session, int from, int to, int length);
/* What a sequence's `length` tokens left in its cache, as bytes that any session of the same model and kv_kind can take
 * over: how many (0: no such state fits), all of a sequence, and into one. `least` is what pj_session_least says of
 * the sequence that they come from. The bytes are not checked: what is not finite among them is found by the next
 * pj_forward. */
PJ_API size_t pj_session_state_bytes(const pj_session* session, int length, int least);
PJ_API int pj_session_export(const pj_session* session, int sequence, void* state);
PJ_API int pj_session_import(pj_session* session, int sequence, const void* state, int length, int least);
/* Additions to a model's layers ([num_layers], copied), for any sequences of its sessions. The arrays stay mapped until
 * pj_adapter_free, which comes when no sequence uses it any more, and before pj_model_free. */
PJ_API int pj_adapter_create(const pj_model* model, const pj_adapter_layer* layers, pj_adapter** out);
PJ_API void pj_adapter_free(pj_adapter* adapter);
/* From now on a sequence's tokens are evaluated with this adapter (NULL: with none). What was evaluated with another
 * is forgotten: the sequence is empty then. A fork takes its source's adapter over. */
PJ_API int pj_session_use_adapter(pj_session* session, int sequence, const pj_adapter* adapter);
/* Append each token to the sequence that sequences[i] names (NULL: all to sequence 0), in order; those of different
 * sequences may alternate. Logits [num_logits][vocab_size] of the last num_logits tokens (0: none wanted), the same
 * bits as if every sequence were alone. On any error the session is as it was before the call, but for sequences that
 * got more than PJ_WAY_BACK tokens: those of which a layer with a window no longer has what it needs are empty. */
PJ_API int pj_forward(pj_session* session, const int32_t* tokens, const int32_t* sequences, int num_tokens,
                      float* logits, int num_logits);
/* From any thread: the forward pass under way stops with PJ_CANCELLED. */
PJ_API void pj_session_cancel(pj_session* session);

/* What this machine can do: bytes/s read from memory by all threads, int8 multiply-adds/s of the kernels' inner loop.
 * 0 on an error. */
PJ_API double pj_probe_read(size_t buffer_bytes, int num_threads, int repeats);
PJ_API double pj_probe_int8(int num_threads, int repeats);

/* One matrix product with the kernels in use, for tests and benches: y[num_columns][rows] = W x + bias. */
PJ_API int pj_linear(const pj_matrix* matrix, const float* x, int num_columns, int num_threads, float* y);

/* clang-format on */
#ifdef __cplusplus
}
#endif
#endif

/* Token ids in, token ids out: a `.penjing` file on a box without Python.
 *
 *   ./edge MODEL.penjing 1 2 3 --max-tokens 32 [--threads N] [--context N]
 *
 * Always takes the likeliest token; stops after --max-tokens, before a token that ends the text, or when the context is
 * full. Prints one token id a line as it comes. Exit status: 0, 1 for a problem with the model, 2 for the command line.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "penjing.h"
#include "penjing_reader.h"

typedef struct {
  const char* path;
  int32_t* prompt;
  int num_prompt, max_tokens, threads, context;
} options;

static int parse_int(const char* text, int low, int* out) {
  char* end;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno || end == text || *end || value < low || value > INT_MAX) return 0;
  *out = (int)value;
  return 1;
}

static int parse_options(int argc, char** argv, options* o) {
  if (argc < 3) return 0;
  o->path = argv[1];
  for (int i = 2; i < argc; ++i) {
    int* option = !strcmp(argv[i], "--max-tokens") ? &o->max_tokens
                  : !strcmp(argv[i], "--threads")  ? &o->threads
                  : !strcmp(argv[i], "--context")  ? &o->context
                                                   : NULL;
    if (option) {
      if (i + 1 == argc || !parse_int(argv[++i], 1, option)) return 0;
    } else if (!parse_int(argv[i], 0, &o->prompt[o->num_prompt++])) {
      return 0;
    }
  }
  return o->num_prompt > 0;
}

static int32_t likeliest(const float* logits, int size) {
  int best = 0;
  for (int i = 1; i < size; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

static int ends_text(const pj_file* file, int32_t token) {
  const int32_t* eos;
  const int count = pj_file_eos(file, &eos);
  for (int i = 0; i < count; ++i) {
    if (eos[i] == token) return 1;
  }
  return 0;
}

static int complain(const char* fact, const char* where) {
  fprintf(stderr, "%s\n  where: %s\n", fact, where);
  return 1;
}

static int generate(const options* o, const pj_file* file, pj_session* session, float* logits) {
  const int vocab_size = pj_file_model(file)->vocab_size;
  const int32_t* tokens = o->prompt;
  int32_t token;
  int num_tokens = o->num_prompt;
  for (int i = 0; i < o->max_tokens; ++i) {
    if (i > 0 && pj_session_length(session, 0) == o->context) break;
    if (!pj_file_unchanged(file)) return complain("the file changed while it was open", o->path);
    if (pj_forward(session, tokens, NULL, num_tokens, logits, 1)) return complain(pj_last_error(), o->path);
    token = likeliest(logits, vocab_size);
    if (ends_text(file, token)) break;
    if (printf("%d\n", token) < 0 || fflush(stdout)) return complain(strerror(errno), "standard output");
    tokens = &token;
    num_tokens = 1;
  }
  return 0;
}

static int run(const options* o) {
  pj_file* file = NULL;
  pj_model* model = NULL;
  pj_session* session = NULL;
  float* logits = NULL;
  int status = 1;
  if (pj_file_open(o->path, &file)) {
    complain(pj_file_error(), o->path);
  } else if (pj_model_create(pj_file_model(file), &model) ||
             pj_session_create(model, o->context, 1, o->threads, PJ_F16, &session)) {
    complain(pj_last_error(), o->path);
  } else if (!(logits = malloc((size_t)pj_file_model(file)->vocab_size * sizeof *logits))) {
    complain("out of memory", o->path);
  } else {
    status = generate(o, file, session, logits);
  }
  free(logits);
  pj_session_free(session);
  pj_model_free(model);
  pj_file_close(file);
  return status;
}

int main(int argc, char** argv) {
  options o = {.max_tokens = 32, .threads = 1, .context = 2048};
  o.prompt = malloc((size_t)argc * sizeof *o.prompt);
  int status = 2;
  if (o.prompt && parse_options(argc, argv, &o)) {
    status = run(&o);
  } else {
    fprintf(stderr, "usage: %s MODEL.penjing TOKEN... [--max-tokens N] [--threads N] [--context N]\n", argv[0]);
  }
  free(o.prompt);
  return status;
}

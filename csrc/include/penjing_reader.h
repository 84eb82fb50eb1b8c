/* A `.penjing` file without Python: opened, checked, described for pj_model_create.
 *
 * Everything is checked that the engine relies on, because nobody vouches for a file: that it is a sound safetensors
 * file, that its tensors are exactly those that its architecture and layouts ask for, that scales and vectors are
 * finite. A damaged file is an error with a sentence, never a crash; one exception is a file that somebody shortens
 * while it is mapped, which kills its reader (SIGBUS): call pj_file_unchanged before each batch of work and replace
 * files by rename.
 */
#ifndef PENJING_READER_H
#define PENJING_READER_H

#include <stddef.h>
#include <stdint.h>

#include "penjing.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pj_file pj_file;

/* These return 0 for success, else a pj_status, and leave a sentence in pj_file_error() (of the calling thread). */
PJ_API int pj_file_open(const char* path, pj_file** out);
/* The same of a file in memory that the caller keeps, at a multiple of 64, until pj_file_close. */
PJ_API int pj_file_parse(const void* bytes, size_t size, pj_file** out);
PJ_API const char* pj_file_error(void);

/* For pj_model_create. It points into the file: close the file after the model is freed. */
PJ_API const pj_model_desc* pj_file_model(const pj_file* file);
/* Tokens that end a text; *tokens lives as long as the file. */
PJ_API int pj_file_eos(const pj_file* file, const int32_t** tokens);
/* The token that a plain prompt begins with, -1: none. */
PJ_API int32_t pj_file_bos(const pj_file* file);
/* 1 if the file is still as it was when it was opened (size and time of change); 1 for pj_file_parse. */
PJ_API int pj_file_unchanged(const pj_file* file);
PJ_API void pj_file_close(pj_file* file);

#ifdef __cplusplus
}
#endif
#endif

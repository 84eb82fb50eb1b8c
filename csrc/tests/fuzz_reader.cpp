// libFuzzer's target: any bytes are opened or refused. Seeds come from tests/format/make_seeds.py.
#include <cstdlib>
#include <cstring>

#include "penjing_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  void* file_bytes = nullptr;  // exactly as long as the file, so that a read past its end is seen
  if (posix_memalign(&file_bytes, 64, size ? size : 1) != 0) return 0;
  if (size) std::memcpy(file_bytes, data, size);
  pj_file* file = nullptr;
  if (pj_file_parse(file_bytes, size, &file) == PJ_OK) pj_file_close(file);
  std::free(file_bytes);
  return 0;
}

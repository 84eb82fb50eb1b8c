// Inside the engine a problem is an exception; at the C ABI it becomes a status and a sentence.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <stdexcept>

#include "penjing.h"

namespace penjing {

class Error : public std::runtime_error {
 public:
  Error(pj_status code, const char* sentence) : std::runtime_error(sentence), status(code) {}
  const pj_status status;
};

[[noreturn]] [[gnu::format(printf, 2, 3)]] inline void fail(pj_status status, const char* format, ...) {
  char sentence[256];
  va_list args;
  va_start(args, format);
  std::vsnprintf(sentence, sizeof sentence, format, args);
  va_end(args);
  throw Error(status, sentence);
}

}  // namespace penjing

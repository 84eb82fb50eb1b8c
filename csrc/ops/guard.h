// Where C++ ends: exceptions become a status and a sentence.
#pragma once
#include <cstddef>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <system_error>

#include "ops/error.h"

namespace penjing {

// Runs the body; what it throws is told in `last_error`.
template <size_t N, class Body>
int guarded_by(char (&last_error)[N], Body body) noexcept {
  const auto report = [&](int status, const char* sentence) {
    std::snprintf(last_error, N, "%s", sentence);
    return status;
  };
  try {
    body();
    return PJ_OK;
  } catch (const Error& error) {
    return report(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return report(PJ_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return report(PJ_OUT_OF_MEMORY, "out of memory");
  } catch (const std::system_error&) {
    return report(PJ_OUT_OF_MEMORY, "cannot start that many threads");
  } catch (const std::exception& error) {
    return report(PJ_BAD_ARGUMENT, error.what());
  } catch (...) {
    return report(PJ_BAD_ARGUMENT, "unknown problem");
  }
}

}  // namespace penjing

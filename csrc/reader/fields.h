// The fields of a JSON object, taken one by one; what is left over at the end belongs to a newer version.
#pragma once
#include <set>
#include <string>

#include "ops/error.h"
#include "reader/json.h"

namespace penjing::reader {

constexpr int kMaxSize = 1 << 24;  // of anything that is counted, as in penjing/format/architecture.py

class Fields {
 public:
  Fields(const Json& object, std::string what) : what_(std::move(what)), object_(object) {
    if (object.kind != Json::kObject) fail(PJ_BAD_ARGUMENT, "%s is not an object", what_.c_str());
  }

  // Null where there is none.
  const Json* take(const char* name) {
    const Json* found = object_.find(name);
    if (found) taken_.insert(found);
    return found;
  }

  const Json& require(const char* name) {
    const Json* found = take(name);
    if (!found) fail(PJ_BAD_ARGUMENT, "%s: %s is missing", what_.c_str(), name);
    return *found;
  }

  int integer(const char* name, int low, int high) {
    const Json& value = require(name);
    if (!is_integer(value, low, high)) refuse(name);
    return static_cast<int>(value.integer);
  }
  int integer_or(const char* name, int low, int high, int otherwise) {
    return object_.find(name) ? integer(name, low, high) : otherwise;
  }

  double number(const char* name) {
    const Json& value = require(name);
    if (value.kind != Json::kInteger && value.kind != Json::kReal) refuse(name);
    return value.real;
  }
  double number_or(const char* name, double otherwise) { return object_.find(name) ? number(name) : otherwise; }

  bool truth(const char* name) {
    const Json& value = require(name);
    if (value.kind != Json::kBool) refuse(name);
    return value.truth;
  }
  bool truth_or(const char* name, bool otherwise) { return object_.find(name) ? truth(name) : otherwise; }

  const std::string& string(const char* name) {
    const Json& value = require(name);
    if (value.kind != Json::kString) refuse(name);
    return value.text;
  }

  const std::vector<Json>& array(const char* name) {
    const Json& value = require(name);
    if (value.kind != Json::kArray) refuse(name);
    return value.items;
  }

  // Which of the choices the string is; the first where it is absent.
  template <size_t N>
  int choice(const char* name, const char* const (&choices)[N]) {
    if (!object_.find(name)) return 0;
    const std::string& chosen = string(name);
    for (size_t i = 0; i < N; ++i) {
      if (chosen == choices[i]) return static_cast<int>(i);
    }
    refuse(name);
  }

  void finish() const {
    if (taken_.size() != object_.members.size())
      fail(PJ_BAD_ARGUMENT, "%s has fields that are not known", what_.c_str());
  }

  [[noreturn]] void refuse(const char* name) const {
    fail(PJ_BAD_ARGUMENT, "%s: %s is not what it can be", what_.c_str(), name);
  }

  static bool is_integer(const Json& value, int64_t low, int64_t high) {
    return value.kind == Json::kInteger && low <= value.integer && value.integer <= high;
  }

 private:
  const std::string what_;
  const Json& object_;
  std::set<const Json*> taken_;
};

}  // namespace penjing::reader

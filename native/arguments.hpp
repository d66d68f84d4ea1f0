// Arguments from Python, checked before a kernel sees them; every message starts with the argument's name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <optional>
#include <string>

#include "dispatch.hpp"

namespace vitrine {

namespace nb = nanobind;

[[noreturn]] inline void bad_type(const std::string& message) { throw nb::type_error(message.c_str()); }
[[noreturn]] inline void bad_value(const std::string& message) { throw nb::value_error(message.c_str()); }

template <class T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, bool>) return "bool";
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, uint16_t>) return "uint16";
  if constexpr (std::is_same_v<T, uint32_t>) return "uint32";
  if constexpr (std::is_same_v<T, uint64_t>) return "uint64";
  if constexpr (std::is_same_v<T, int64_t>) return "int64";
}

inline std::string shape_of(std::initializer_list<size_t> shape) {
  std::string text = "(";
  for (const size_t side : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// A C-contiguous array of T on the CPU; keeps its memory alive.
template <class T>
class Input {
 public:
  Input(const char* name, nb::handle value, size_t dimensions) : name_(name) {
    const std::string expected = std::string(name) + ": expected a C-contiguous " + dtype_name<T>() + " array of " +
                                 std::to_string(dimensions) + (dimensions == 1 ? " dimension" : " dimensions") +
                                 ", got ";
    if (!nb::ndarray_check(value) || !nb::try_cast(value, array_)) {
      bad_type(expected + nb::type_name(value.type()).c_str());
    }
    if (array_.device_type() != nb::device::cpu::value) bad_type(expected + "one that is not in main memory");
    if (array_.dtype() != nb::dtype<T>()) {
      const char* kinds[] = {"int", "uint", "float"};
      const auto dtype = array_.dtype();
      bad_type(expected + (dtype.code < 3 ? kinds[dtype.code] + std::to_string(dtype.bits) : "another dtype"));
    }
    if (array_.ndim() != dimensions) bad_value(expected + std::to_string(array_.ndim()));
    int64_t stride = 1;
    for (size_t i = dimensions; i-- > 0;) {
      if (array_.size() != 0 && array_.shape(i) != 1 && array_.stride(i) != stride) {
        bad_value(expected + "one with gaps or another order (numpy.ascontiguousarray copies it)");
      }
      stride *= static_cast<int64_t>(array_.shape(i));
    }
  }

  const T* data() const { return static_cast<const T*>(array_.data()); }
  size_t shape(size_t i) const { return array_.shape(i); }
  size_t size() const { return array_.size(); }
  T operator[](size_t i) const { return data()[i]; }

  // `of` says whose lengths these are.
  void expect(std::initializer_list<size_t> shape, const char* of) const {
    bool same = true;
    std::string got = "(";
    for (size_t i = 0; i < shape.size(); ++i) {
      same = same && array_.shape(i) == shape.begin()[i];
      got += (i ? ", " : "") + std::to_string(array_.shape(i));
    }
    got += shape.size() == 1 ? ",)" : ")";
    if (!same) bad_value(std::string(name_) + ": expected shape " + shape_of(shape) + " (" + of + "), got " + got);
  }

 private:
  const char* name_;
  nb::ndarray<nb::ro> array_;
};

inline size_t positive(const char* name, int64_t value) {
  if (value < 1) bad_value(std::string(name) + ": expected at least 1, got " + std::to_string(value));
  return static_cast<size_t>(value);
}

// Refuses an indptr whose part i is not an ordered range within `total`.
inline void check_part(const char* name, const Input<int64_t>& indptr, size_t i, size_t total) {
  const int64_t begin = indptr[i], end = indptr[i + 1];
  if (begin < 0 || end < begin || static_cast<uint64_t>(end) > total) {
    bad_value(std::string(name) + ": entries " + std::to_string(i) + " and " + std::to_string(i + 1) + " are " +
              std::to_string(begin) + " and " + std::to_string(end) + "; they must ascend from 0 to " +
              std::to_string(total));
  }
}

inline void check_ends(const char* name, const Input<int64_t>& indptr, size_t total) {
  if (indptr.size() == 0) bad_value(std::string(name) + ": expected one entry more than it has parts, got none");
  const int64_t first = indptr[0], last = indptr[indptr.size() - 1];
  if (first != 0 || last != static_cast<int64_t>(total)) {
    bad_value(std::string(name) + ": expected to start at 0 and end at " + std::to_string(total) + ", got " +
              std::to_string(first) + " and " + std::to_string(last));
  }
}

inline const Kernels& kernels_of(const std::optional<std::string>& kernel) {
  return kernel ? find(*kernel, "kernel") : chosen();
}

// A zeroed numpy array, filled with the GIL released and then handed to Python.
template <class T>
class Output {
 public:
  Output(const char* name, std::initializer_list<size_t> shape) {
    size_t bytes = sizeof(T);
    for (const size_t side : shape) {
      if (__builtin_mul_overflow(bytes, std::max<size_t>(side, 1), &bytes) || bytes > PTRDIFF_MAX) {
        bad_value(std::string(name) + ": a result of shape " + shape_of(shape) + " does not fit in memory");
      }
    }
    data_ = static_cast<T*>(std::calloc(bytes / sizeof(T), sizeof(T)));
    if (data_ == nullptr) throw std::bad_alloc();
    nb::capsule owner(data_, [](void* data) noexcept { std::free(data); });
    array_ = nb::ndarray<nb::numpy, T>(data_, shape, owner);
  }
  T* data() { return data_; }
  nb::object take() { return nb::cast(std::move(array_), nb::rv_policy::reference); }

 private:
  T* data_;
  nb::ndarray<nb::numpy, T> array_;
};

}  // namespace vitrine

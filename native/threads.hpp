// Work shared by a call's own threads: the caller is one of them, and the first exception comes back to it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace vitrine {

// Runs work(0) ... work(threads - 1) at the same time.
template <class Work>
void on_threads(size_t threads, const Work& work) {
  std::exception_ptr failure;
  std::mutex guard;
  const auto attempt = [&](size_t worker) {
    try {
      work(worker);
    } catch (...) {
      const std::lock_guard lock(guard);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    others.reserve(threads - 1);
    for (size_t worker = 1; worker < threads; ++worker) others.emplace_back(attempt, worker);
  } catch (...) {  // no thread to be had: those that started end first
    const std::lock_guard lock(guard);
    failure = std::current_exception();
  }
  attempt(0);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vitrine

#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

namespace vitrine {

const std::vector<const Kernels*>& supported() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> found;
#ifdef VITRINE_X86
    // These ask cpuid, and xgetbv whether the operating system saves the registers.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vpopcntdq")) {
      found.push_back(&avx512_kernels);
    }
    if (avx2) found.push_back(&avx2_kernels);
#endif
    found.push_back(&portable_kernels);
    return found;
  }();
  return tables;
}

const Kernels& find(const std::string& name, const char* source) {
  std::string names;
  for (const Kernels* table : supported()) {
    if (name == table->name) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument(std::string(source) + ": this machine has no kernel '" + name + "'; it runs " + names +
                              " (leave it out to have the first)");
}

const Kernels& chosen() {
  static const Kernels& table = []() -> const Kernels& {
    const char* forced = std::getenv("VITRINE_KERNEL");
    return forced && *forced ? find(forced, "VITRINE_KERNEL") : *supported().front();
  }();
  return table;
}

}  // namespace vitrine

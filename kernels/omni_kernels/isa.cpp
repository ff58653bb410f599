#include "isa.h"

#include <atomic>

#include "pool.h"

#if OMNI_X86
#include <cpuid.h>
#elif OMNI_ARM && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace omni {
namespace {

Isa best() {
#if OMNI_X86
  __builtin_cpu_init();
  unsigned a, b, c = 0, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni"))
    return kAvx512Vnni;
  if (avx2) return kAvx2;
#elif OMNI_ARM && defined(__ARM_FEATURE_DOTPROD)
  return kNeon;  // the compiler was told so; Apple's always is
#elif OMNI_ARM && defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return kNeon;
#endif
  return kScalar;
}

bool runs(int wanted) {
  return wanted == kScalar || wanted == best() || (wanted == kAvx2 && best() == kAvx512Vnni);
}

std::atomic<int> chosen{-1};

}  // namespace

Isa isa() {
  const int known = chosen.load(std::memory_order_relaxed);
  if (known >= 0) return static_cast<Isa>(known);
  chosen.store(best(), std::memory_order_relaxed);
  return isa();
}

}  // namespace omni

extern "C" {

// Raised whenever an exported function changes; library.py refuses another version.
int omni_version() { return 6; }

// The best path of this machine: 0 scalar, 1 AVX2, 2 AVX-512 VNNI, 3 NEON with dot products.
int omni_best_isa() { return omni::best(); }

// Whether this machine can run a path.
int omni_runs_isa(int wanted) { return omni::runs(wanted); }

// Force a path; returns 0, or -1 when this machine cannot run it.
int omni_set_isa(int wanted) {
  if (!omni::runs(wanted)) return -1;
  omni::chosen.store(wanted, std::memory_order_relaxed);
  return 0;
}

void omni_set_num_threads(int count) { omni::set_num_threads(count); }
int omni_num_threads() { return omni::num_threads(); }
}

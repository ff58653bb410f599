// Which instructions this process may use. Chosen once at run time; tests force each in turn.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define OMNI_X86 1
#define OMNI_AVX2 __attribute__((target("avx2,fma,f16c")))
#define OMNI_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#else
#define OMNI_X86 0
#endif

namespace omni {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512Vnni = 2 };

Isa isa();

}  // namespace omni

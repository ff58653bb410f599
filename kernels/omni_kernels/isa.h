// Which instructions this process may use. Chosen once at run time; tests force each in turn.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define OMNI_X86 1
#define OMNI_AVX2 __attribute__((target("avx2,fma,f16c")))
#define OMNI_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#else
#define OMNI_X86 0
#endif

// sdot in chosen functions of a library for any ARMv8: not with compilers that know it only when it
// is on for everything (Clang below 16), unless it is.
#if defined(__aarch64__) && !defined(__AARCH64EB__) && defined(__ARM_FEATURE_DOTPROD)
#define OMNI_ARM 1
#define OMNI_NEON
#elif defined(__aarch64__) && !defined(__AARCH64EB__) && defined(__GNUC__) && \
    (!defined(__clang__) || __clang_major__ >= 16)
#define OMNI_ARM 1
#define OMNI_NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#else
#define OMNI_ARM 0
#endif

namespace omni {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512Vnni = 2, kNeon = 3 };

Isa isa();

}  // namespace omni

#include "../isa.h"

#if OMNI_X86
#define OMNI_SIMD 256
#include "kernel.h"

namespace omni {
const AttentionPath kAttention256 = {simd256::kWidth, simd256::segment, simd256::merge,
                                   simd256::finish};
}  // namespace omni
#endif

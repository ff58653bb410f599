#include "../isa.h"

#if OMNI_X86
#define OMNI_SIMD 512
#include "kernel.h"

namespace omni {
const AttentionPath kAttention512 = {simd512::kWidth, simd512::segment, simd512::merge,
                                   simd512::finish};
}  // namespace omni
#endif

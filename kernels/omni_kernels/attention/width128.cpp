#define OMNI_SIMD 128
#include "kernel.h"

namespace omni {
const AttentionPath kAttention128 = {simd128::kWidth, simd128::segment, simd128::merge,
                                   simd128::finish};
}  // namespace omni

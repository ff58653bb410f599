#include "../isa.h"

#if OMNI_X86
#define OMNI_SIMD 512
#include "kernel.h"

namespace omni {
const RowwisePath kRowwise512 = {simd512::rms_norm, simd512::layer_norm, simd512::silu_mul,
                               simd512::sigmoid_mul, simd512::rotate};
}  // namespace omni
#endif

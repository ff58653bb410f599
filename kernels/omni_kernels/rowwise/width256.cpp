#include "../isa.h"

#if OMNI_X86
#define OMNI_SIMD 256
#include "kernel.h"

namespace omni {
const RowwisePath kRowwise256 = {simd256::rms_norm, simd256::layer_norm, simd256::silu_mul,
                               simd256::sigmoid_mul, simd256::rotate};
}  // namespace omni
#endif

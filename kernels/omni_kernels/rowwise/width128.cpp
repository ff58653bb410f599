#define OMNI_SIMD 128
#include "kernel.h"

namespace omni {
const RowwisePath kRowwise128 = {simd128::rms_norm, simd128::layer_norm, simd128::silu_mul,
                               simd128::sigmoid_mul, simd128::rotate};
}  // namespace omni

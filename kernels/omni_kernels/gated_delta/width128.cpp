#define OMNI_SIMD 128
#include "kernel.h"

namespace omni {
const DeltaPath kDelta128 = {simd128::kWidth, simd128::head};
}  // namespace omni

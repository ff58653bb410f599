#include "../isa.h"

#if OMNI_X86
#define OMNI_SIMD 512
#include "kernel.h"

namespace omni {
const DeltaPath kDelta512 = {simd512::kWidth, simd512::head};
}  // namespace omni
#endif

#include "../isa.h"

#if OMNI_X86
#define OMNI_SIMD 256
#include "kernel.h"

namespace omni {
const DeltaPath kDelta256 = {simd256::kWidth, simd256::head};
}  // namespace omni
#endif

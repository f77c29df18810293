// The batch norm kernels for AVX2: the same bits, wider registers.

#include "norm/cpu_kernels.h"

#ifdef LARGEBATCH_NORM_X86

#include <immintrin.h>

#include <cstring>

// From here on, and not for what is shared with other sources.
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define LARGEBATCH_ISA avx2
#define LARGEBATCH_ISA_AVX2
#include "norm/cpu_table.h"

namespace largebatch {

const NormKernelSet& norm_kernels_avx2() { return avx2::kKernels; }

}  // namespace largebatch

#endif

// The batch norm kernels for AVX-512: the same bits, wider registers.

#include "norm/cpu_kernels.h"

#ifdef LARGEBATCH_NORM_X86

#include <immintrin.h>

#include <cstring>

// From here on, and not for what is shared with other sources.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define LARGEBATCH_ISA avx512
#define LARGEBATCH_ISA_AVX512
#include "norm/cpu_table.h"

namespace largebatch {

const NormKernelSet& norm_kernels_avx512() { return avx512::kKernels; }

}  // namespace largebatch

#endif

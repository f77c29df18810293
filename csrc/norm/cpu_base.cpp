// The batch norm kernels for any processor of the architecture.

#define LARGEBATCH_ISA base
#include "norm/cpu_table.h"

namespace largebatch {

const NormKernelSet& norm_kernels_base() { return base::kKernels; }

}  // namespace largebatch

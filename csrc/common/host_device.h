// LARGEBATCH_HOST_DEVICE: before a function that the CPU's and the CUDA kernels share.

#pragma once

#ifdef __CUDACC__
#define LARGEBATCH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LARGEBATCH_HOST_DEVICE inline __attribute__((always_inline))
#endif

// LARGEBATCH_CLONES: compile a function for several x86 instruction sets and pick one at load time.
//
// The sources hold no intrinsics, and contraction is off (setup.py), so that every clone gives the
// same bits; elsewhere (aarch64, other compilers, sanitizers) the function is compiled once.

#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(LARGEBATCH_SANITIZE)
#define LARGEBATCH_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LARGEBATCH_CLONES
#endif

"""The operators of largebatch: schemas, loading of the compiled kernels, references, fake kernels.

Every operator is in ``torch.ops.largebatch`` and has up to three implementations (faces). The
reference here is in plain PyTorch: it is the specification, and the fallback for devices without a
kernel. A CPU kernel and a CUDA kernel are in ``csrc``, compiled to ``largebatch._C``.
``LARGEBATCH_OPS=compiled|reference`` forces a face; ``compiled`` raises an error if the library is
absent.

The functions of this package call the operators; they are traced whole by ``torch.compile`` and
never wait for the device.
"""

import torch

from largebatch._ops.dtypes import accumulate_dtype
from largebatch._ops.gradient_norm import (
    clip_factor,
    global_norm,
    reference_clip_factor,
    reference_global_norm,
)
from largebatch._ops.hadamard import hadamard, reference_hadamard
from largebatch._ops.layerwise import lamb_, lars_, reference_lamb_, reference_lars_
from largebatch._ops.library import (
    BUILD_RECORD,
    LIBRARY,
    OPERATORS,
    Operator,
    backends,
    build_record,
    face,
    is_compiled,
    serve_gpus_without_code,
)
from largebatch._ops.norm import ghost_norm
from largebatch._ops.norm_reference import (
    NormPolicy,
    norm_constant,
    reference_ghost_norm,
    reference_ghost_norm_backward,
)
from largebatch._ops.norm_steps import (
    reference_norm_apply,
    reference_norm_gradient,
    reference_norm_gradient_sums,
    reference_norm_moments,
)
from largebatch._ops.sgd import reference_sgd_, sgd_
from largebatch._ops.shards import reference_sum_shards, sum_shards

__all__ = [
    "BUILD_RECORD",
    "LIBRARY",
    "OPERATORS",
    "NormPolicy",
    "Operator",
    "accumulate_dtype",
    "backends",
    "build_record",
    "clip_factor",
    "face",
    "ghost_norm",
    "global_norm",
    "hadamard",
    "is_compiled",
    "lamb_",
    "lars_",
    "norm_constant",
    "reference_clip_factor",
    "reference_ghost_norm",
    "reference_ghost_norm_backward",
    "reference_global_norm",
    "reference_hadamard",
    "reference_lamb_",
    "reference_lars_",
    "reference_norm_apply",
    "reference_norm_gradient",
    "reference_norm_gradient_sums",
    "reference_norm_moments",
    "reference_sgd_",
    "reference_sum_shards",
    "sgd_",
    "sum_shards",
]

# Run when torch first uses CUDA, by when all operators are registered.
torch.cuda._lazy_call(serve_gpus_without_code)

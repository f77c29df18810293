"""One of PyTorch's own test files, unchanged, on what torch has or on ours in its place.

    python torch_own.py OUTCOMES TEST_FOLDER SUITE SIDE

``optimizers`` is test_optim.py's TestOptimRenewed, whose list of optimizers (OptimizerInfo) is
replaced; ``norms`` is test_modules.py, whose list of modules (ModuleInfo) is replaced; ``gloo`` is
ProcessGroupGlooTest of test_c10d_gloo.py, whose process group is replaced. Sides: ``torch``, with
the entries that ours take the place of; ``ours``; and for ``gloo`` also ``dispatched``, torch's
gloo as init_process_group gives it, where the tests build the back end below it.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

GRID = {"LARGEBATCH_ALLREDUCE": "torus", "LARGEBATCH_TORUS": "2x2"}  # the tests have four ranks
BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")


def put_optimizers(side: str) -> None:
    """Leave in torch's list of optimizers the entries of one side."""
    import torch
    from torch.testing._internal.common_optimizers import optim_db
    from torch_optimizers import settings_of

    from largebatch.optim import LAMB, LARS, SGD, SGDW, RMSpropWarmup

    place = {
        SGD: torch.optim.SGD,
        SGDW: torch.optim.SGD,
        LARS: torch.optim.SGD,
        LAMB: torch.optim.Adam,
        RMSpropWarmup: torch.optim.RMSprop,
    }
    torchs = {info.optim_cls: info for info in optim_db if info.optim_cls in place.values()}
    if side == "torch":
        optim_db[:] = torchs.values()
        return

    def entry(kind: Any) -> Any:
        info = copy.copy(torchs[place[kind]])
        info.optim_cls = kind
        info.optim_inputs_func = lambda device, dtype=None: settings_of(kind)
        # What ours refuse by design, each with a message of its own.
        info.supports_sparse = info.supports_complex = info.has_capturable_arg = False
        info.supported_impls = ("foreach",) if kind is RMSpropWarmup else ("foreach", "fused")
        info.supports_fused_on = () if kind is RMSpropWarmup else ("cpu", "cuda")
        return info

    optim_db[:] = [entry(kind) for kind in place]


def put_norms(side: str) -> None:
    """Leave in torch's list of modules its batch norms, or one entry for each of our norms."""
    from torch.testing._internal.common_modules import module_db
    from torch_modules import ARGUMENTS, NORMS

    torchs = [info for info in module_db if info.module_cls.__name__ in BATCH_NORMS]
    if side == "torch":
        module_db[:] = torchs
        return

    def stand_in(title: str, norm: Any, place: Any) -> Any:
        kind, settings = getattr(norm, "func", norm), getattr(norm, "keywords", {})
        words = title.replace("-", " ").split()
        name = "".join(word[0].upper() + word[1:] for word in words) + place.__name__

        def start(self: Any, *given: Any, **named: Any) -> None:
            arguments = dict(zip(ARGUMENTS, given, strict=False))  # torch's order
            kind.__init__(self, **arguments, **settings, **named)

        made = type(name, (kind,), {"__init__": start, "__module__": __name__})
        globals()[name] = made  # where pickle looks for it
        return made

    entries = []
    for title, norm in NORMS.items():
        for info in torchs:
            entry = copy.copy(info)
            entry.module_cls = stand_in(title, norm, info.module_cls)
            entries.append(entry)
    module_db[:] = entries


def put_groups(side: str) -> None:
    """Let the tests of gloo make groups of another kind."""
    import test_c10d_gloo
    import torch.distributed as dist
    from torch.testing._internal.common_distributed import MultiProcessTestCase

    import largebatch.distributed  # noqa: F401  which makes the torus known before torch 2.15

    def fork(self: Any) -> None:  # a spawned rank imports torch's test library anew
        self._start_processes(multiprocessing.get_context("fork").Process)

    MultiProcessTestCase._spawn_processes = fork
    if side == "torch":
        return
    start = dist.init_process_group
    backend = "torus" if side == "ours" else "gloo"

    def init_process_group(*_: Any, **options: Any) -> None:
        start(**{**options, "backend": backend})

    def create(self: Any, store: Any, rank: int, world_size: int, opts: Any) -> Any:
        start(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=50))
        dist.barrier()
        return dist.group.WORLD

    dist.init_process_group = init_process_group
    test_c10d_gloo.ProcessGroupGlooTest._create_process_group_gloo = create


SUITES = {
    "optimizers": (put_optimizers, "test_optim.py", "TestOptimRenewed"),
    "norms": (put_norms, "test_modules.py", "TestModule"),
    "gloo": (put_groups, "distributed/test_c10d_gloo.py", "ProcessGroupGlooTest"),
}


def main() -> None:
    from outcomes import Outcomes
    from suite import run

    outcomes, folder, suite, side = sys.argv[1:]
    put, file, chosen = SUITES[suite]
    found = Path(folder, file)
    sys.path.insert(0, str(found.parent))
    if suite == "gloo":
        os.environ.update(GRID)
    put(side)
    run(Outcomes(outcomes), found, ["--noconftest", "-k", chosen])


if __name__ == "__main__":
    main()

"""timm's own tests of its optimizers, with LARS, LAMB and SGD replaced in its registry."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from outcomes import Outcomes
from suite import run
from timm.optim._optim_factory import default_registry

from largebatch.optim import LAMB, LARS, SGD


def preset(optimizer: type, **options: object) -> type:
    """Return a class that is ``optimizer`` with some arguments given: timm wants classes."""

    class Preset(optimizer):  # type: ignore[misc, valid-type]
        def __init__(self, params: object, **others: object) -> None:
            super().__init__(params, **{**options, **others})

    return Preset


OURS = {
    "lars": preset(LARS, preset="timm"),
    "larc": preset(LARS, preset="timm", clip_ratio=True),
    "nlars": preset(LARS, preset="timm", nesterov=True),
    "nlarc": preset(LARS, preset="timm", nesterov=True, clip_ratio=True),
    "lamb": preset(LAMB, preset="nvlamb"),
    "lambc": preset(LAMB, preset="nvlamb", max_ratio=1.0),
    "sgd": preset(SGD, nesterov=True),
    "momentum": SGD,
}


def main() -> None:
    os.environ["TORCH_DEVICE"] = "cpu"
    for name, factory in OURS.items():
        found = default_registry._optimizers[name]
        default_registry.register(replace(found, opt_class=factory, defaults=None))
    chosen = " or ".join(sorted({*OURS, "factory"}))
    run(Outcomes(sys.argv[1]), Path(sys.argv[2], "tests", "test_optim.py"), ["-k", chosen])


if __name__ == "__main__":
    main()

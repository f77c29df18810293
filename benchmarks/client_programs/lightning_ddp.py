"""Lightning's ddp strategy on two ranks: back end torus against gloo, to every digit."""

from __future__ import annotations

import os
import sys
from functools import partial
from itertools import count

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning_training import OPTIMIZERS, Net, batches, trainer
from outcomes import Outcomes

import largebatch.distributed  # noqa: F401  which makes the torus known before torch 2.15

PORTS = count(int(os.environ.get("MASTER_PORT", "29500")) + 1)


def weights(optimizer: str, backend: str) -> list[torch.Tensor]:
    # Every group meets at a store of its own: torchrun's still holds the addresses of the last one.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    os.environ["MASTER_PORT"] = str(next(PORTS))
    lightning.seed_everything(0, verbose=False)
    model = Net(optimizer)
    strategy = DDPStrategy(process_group_backend=backend)
    trainer(strategy=strategy, devices=2, max_epochs=2).fit(model, batches())
    torch.distributed.destroy_process_group()
    return [p.detach().clone() for p in model.parameters()]


def same(optimizer: str) -> None:
    for one, other in zip(weights(optimizer, "gloo"), weights(optimizer, "torus"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def main() -> None:
    # Two ranks have no second axis: a narrow wire would make the schedule run, at its precision.
    os.environ |= {"LARGEBATCH_TORUS": "2x1"}
    first = os.environ["RANK"] == "0"
    outcomes = Outcomes(sys.argv[1] if first else os.devnull)
    for name in OPTIMIZERS:
        outcomes.check(f"{name}, ddp", partial(same, name))


if __name__ == "__main__":
    main()

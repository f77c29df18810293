"""accelerate: three precisions, accumulation, skipped steps, and a state saved and loaded."""

from __future__ import annotations

import sys
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from outcomes import Outcomes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from largebatch.optim import LAMB, LARS, SGD

OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "LARS": lambda p: LARS(p, lr=1.0),
    "LAMB": lambda p: LAMB(p, lr=0.01),
}


def run(name: str, precision: str, steps: int, folder: str = "", again: bool = False):
    """Train; save the state half way to ``folder``, or go on from there."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=2, cpu=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(64, 16, generator=draw), torch.randint(0, 4, (64,), generator=draw)
    )
    model, optimizer, loader = accelerator.prepare(
        model, OPTIMIZERS[name](model.parameters()), DataLoader(data, batch_size=8)
    )
    if again:
        accelerator.load_state(folder)
    losses = []
    for step in range(steps // 2 if again else 0, steps):
        if step == steps // 2 and folder and not again:
            accelerator.save_state(folder)
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses, [p.detach().clone() for p in model.parameters()]


def trains(name: str, precision: str) -> None:
    losses, _ = run(name, precision, 6)
    assert sum(losses[-8:]) < sum(losses[:8]), losses


def resumes(name: str) -> None:
    _, whole = run(name, "no", 4, "state")
    _, again = run(name, "no", 4, "state", again=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def main() -> None:
    outcomes = Outcomes(sys.argv[1])
    for name in OPTIMIZERS:
        for precision in ("no", "bf16", "fp16"):
            outcomes.check(f"{name} {precision}", partial(trains, name, precision))
        outcomes.check(f"{name} resumed", partial(resumes, name))


if __name__ == "__main__":
    main()

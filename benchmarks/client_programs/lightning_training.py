"""Lightning on one process: every optimizer in four precisions with clipping, and resumption."""

from __future__ import annotations

import copy
import sys
from functools import partial

import lightning
import torch
from outcomes import Outcomes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from largebatch.nn import convert_batch_norm
from largebatch.optim import LAMB, LARS, SGD

OPTIMIZERS = {
    "SGD": lambda p, **o: SGD(p, lr=0.05, momentum=0.9, **o),
    "LARS": lambda p, **o: LARS(p, lr=1.0, **o),
    "LAMB": lambda p, **o: LAMB(p, lr=0.01, **o),
}


class Net(lightning.LightningModule):
    """A small convolutional net with ghost batch norm."""

    def __init__(self, optimizer: str, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            nn.Linear(8 * 36, 10),
        )
        self.net = convert_batch_norm(net, "ghost", ghost_size=8)
        self.optimizer, self.options = optimizer, options
        self.seen: list[float] = []

    def training_step(self, batch, number):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.seen.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters(), **self.options)


def batches() -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(128, 1, 8, 8, generator=draw)
    labels = torch.randint(0, 10, (128,), generator=draw)
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def trainer(**options):
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )


def trains(optimizer: str, precision: str, **options: object) -> None:
    model = Net(optimizer, **options)
    trainer(precision=precision, gradient_clip_val=1.0, max_epochs=4).fit(model, batches())
    assert sum(model.seen[-8:]) < sum(model.seen[:8]), model.seen


def clips_as_torch_does() -> None:
    """The trajectory under bf16-mixed with clipping is that of torch's SGD in the same place."""
    ours = Net("SGD", fused=False)
    theirs = copy.deepcopy(ours)
    theirs.configure_optimizers = lambda: torch.optim.SGD(  # type: ignore[method-assign]
        theirs.parameters(), lr=0.05, momentum=0.9
    )
    for model in (ours, theirs):
        trainer(precision="bf16-mixed", gradient_clip_val=0.1, max_epochs=1).fit(model, batches())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def resumes(optimizer: str) -> None:
    whole = Net(optimizer)
    trainer(max_epochs=4).fit(whole, batches())
    first = Net(optimizer)
    run = trainer(max_epochs=2)
    run.fit(first, batches())
    run.save_checkpoint("half.ckpt")
    second = Net(optimizer)
    trainer(max_epochs=4).fit(second, batches(), ckpt_path="half.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def main() -> None:
    outcomes = Outcomes(sys.argv[1])
    for name in OPTIMIZERS:
        for precision in ("32-true", "bf16-mixed", "16-mixed"):
            # Lightning clips by itself, so unscaling is left to it.
            options = {} if precision == "32-true" else {"fused": False}
            outcomes.check(
                f"{name} {precision}, clipped", partial(trains, name, precision, **options)
            )
        outcomes.check(f"{name} resumed", partial(resumes, name))
    outcomes.check("clips as torch's SGD does", clips_as_torch_does)


if __name__ == "__main__":
    main()

"""Two networks with a generalization gap: similar training error, different test error by batch.

Keskar et al. 2017, table 1: F2 on TIMIT and C1 on CIFAR-10. TIMIT is not free: in its place come
frames of generated speech, 360 numbers each; the digits stand for CIFAR-10.
"""

from __future__ import annotations

import torch
from torch import nn

from largebatch.lab.descent import accuracy, fit
from largebatch.lab.digits import Samples, digits
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.networks import seeded
from largebatch.lab.pictures import lines, over_seeds
from largebatch.models import image_offers, model_of

COUNTS = {"f2": 2_780_085, "c1": 1_757_834}
LECTURE = {"f2": 1.2e6, "c1": 1.7e6}
OUTPUTS = {"f2": 1973, "c1": 10}
SMALL, PART = 16, 10  # the small batch; the large one is a tenth of the set
STATES = 60  # of the 1,973 outputs, those that occur
FEATURES = 40


def frames(seed: int, count: int) -> Samples:
    """Draw frames (n, 1, 1, 360): each state a mixture of two sounds of 40 features, and noise.

    Nine neighbouring frames of 40 features make one input, as in TIMIT's recipes: they are alike.
    """
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(STATES, 2, FEATURES, generator=torch.Generator().manual_seed(1000))
    states = torch.randint(STATES, (count,), generator=generator)
    which = torch.randint(2, (count,), generator=generator)
    own = 0.9 * torch.randn(count, 1, FEATURES, generator=generator)
    noise = torch.randn(count, 9, FEATURES, generator=generator)
    heard = sounds[states, which][:, None] + own + noise
    return heard.reshape(count, 1, 1, 9 * FEATURES) / 1.7, states


@experiments.register("keskar-nets")
class KeskarNetworks(Experiment):
    """Counts the networks' parameters, and trains both with a small and a large batch."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "fully connected, TIMIT N=1.2M; conv-net, CIFAR10 N=1.7M: similar training, test gap"
    source = "Keskar et al. 2017, tables 1 and 2"
    minutes = 3.6

    def measure(self, scale: Scale) -> Findings:
        """Compare accuracies after equal epochs of Adam, as there."""
        count, epochs = scale.pick(240, 1442), scale.pick(3, 12)
        found = Findings([], [])
        sets = {"f2": (frames(0, count), frames(1, 1000)),
                "c1": (digits("train", limit=count), digits("val"))}  # fmt: skip
        for name, (train, held_out) in sets.items():
            outputs = OUTPUTS[name]
            published = {"f2": (1, 1, 360), "c1": (3, 32, 32)}[name]
            own = (train[0].shape[1], train[0].shape[2], train[0].shape[3])
            counted = _parameters(name, outputs, published)
            found.checks += [
                Check(f"parameters of {name}, as the lecture has them", f"{LECTURE[name]:,.0f}",
                      f"{counted:,}", abs(counted / LECTURE[name] - 1) < 0.05),
                Check(f"parameters of {name}", f"{COUNTS[name]:,}", f"{counted:,}",
                      counted == COUNTS[name], exact=True),
            ]  # fmt: skip
            batches = (SMALL, count // PART)
            curves = {batch: list[list[float]]() for batch in batches}
            ends = {batch: list[tuple[float, float]]() for batch in batches}
            for seed in scale.seeds:
                for batch in batches:
                    with seeded(seed):
                        model = model_of(name, {}, image_offers(outputs, own))
                        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                        steps = epochs * (count // batch)
                        path = fit(model, train, optimizer, batch, steps, seed)
                    each = count // batch
                    curves[batch].append(
                        [sum(path[k : k + each]) / each for k in range(0, len(path), each)]
                    )
                    model.eval()
                    ends[batch].append((accuracy(model, train), accuracy(model, held_out)))
                    found.rows.append(
                        {"network": name, "seed": seed, "batch": batch, "steps": steps,
                         "train": ends[batch][-1][0], "held out": ends[batch][-1][1]}
                    )  # fmt: skip
            pairs = list(zip(*ends.values(), strict=True))
            trained = [a[0] - b[0] for a, b in pairs]
            gaps = [a[1] - b[1] for a, b in pairs]
            found.checks += [
                Check(f"{name}: training accuracy, small batch less large", "0 (within 0.01)",
                      spread(trained), agreed(abs(gap) < 0.01 for gap in trained)),
                Check(f"{name}: held-out accuracy, small batch less large", "above 0",
                      spread(gaps), agreed(gap > 0 for gap in gaps)),
            ]  # fmt: skip
            series = [over_seeds(f"batch {batch}", range(1, epochs + 1), runs)
                      for batch, runs in curves.items()]  # fmt: skip
            drawing = lines("epoch", "training loss", series, log="y")
            found.charts.append((f"Training {name}", "mean over each epoch", drawing))
        found.notes.append(
            f"{count} samples to train with. F2 as published, with 1,973 outputs, has 2.8 M"
            " parameters; 1.2 M is the lecture's."
        )
        return found


def _parameters(name: str, outputs: int, shape: tuple[int, ...]) -> int:
    with torch.device("meta"):
        model: nn.Module = model_of(name, {}, {"num_classes": outputs, "image_shape": shape})
    return sum(p.numel() for p in model.parameters())

"""timm's families of models: their batch norms convert to ghosts, with their activations.

The smallest model of each family whose batch norms timm makes. In evaluation the converted model
gives what the model gave; one training step in ghosts runs, and converting back gives it again.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial

import timm
import torch
from outcomes import Outcomes
from torch import nn

from largebatch.nn import GhostBatchNorm, convert_batch_norm

MOST_PARAMETERS = 30e6


def families() -> dict[str, str]:
    """Return the smallest model with batch norms of each of timm's modules."""
    found: dict[str, tuple[float, str]] = {}
    for name in timm.list_models(exclude_filters=["*_in21k*", "test_*"]):
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        if len([n for n in tried.setdefault(module, []) if n]) >= 2 or len(tried[module]) >= 6:
            continue
        with torch.device("meta"):
            try:
                model = timm.create_model(name)
            except Exception:  # some models cannot be made on the meta device
                tried[module].append("")
                continue
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        size = sum(p.numel() for p in model.parameters())
        tried[module].append(name if norms and size < MOST_PARAMETERS else "")
        if norms and size < min(MOST_PARAMETERS, found.get(module, (float("inf"), ""))[0]):
            found[module] = (size, name)
    return {module: name for module, (_, name) in found.items()}


tried: dict[str, list[str]] = {}


def converts(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    config = model.default_cfg
    side = min(config.get("input_size", (3, 224, 224))[-1], 256)
    images = torch.randn(4, 3, side, side)
    with torch.no_grad():
        before = model(images)
        model = convert_batch_norm(model, "ghost", ghost_size=2)
        scale = float(before.abs().max()) + 1e-6
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4 * scale)
    assert any(isinstance(module, GhostBatchNorm) for module in model.modules()), "none converted"
    model.train()
    model(images).float().square().mean().backward()
    back = convert_batch_norm(model.eval(), "batch")
    assert not any(isinstance(module, GhostBatchNorm) for module in back.modules()), "one is left"
    assert torch.isfinite(back(images)).all(), "not finite after converting back"


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    outcomes = Outcomes(sys.argv[1])
    for module, name in families().items():
        outcomes.check(f"{module}: {name}", partial(converts, name))


if __name__ == "__main__":
    main()

"""nanoGPT's recipe for a CPU on tiny Shakespeare: loss and time, beside a plain loop.

    python benchmarks/nanogpt_shakespeare.py --data INPUT.TXT [--seeds 0 1 2] --json FILE

Both train the same model (4 layers, 4 heads, width 128) on windows of 64 characters, 12 a step, for
2,000 steps, in this process in turn, and judge it on the whole validation text after every 500. The
plain loop is what an expert writes: random windows, torch's AdamW, clipping, a cosine.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.models import ModelConfig, build_model
from largebatch.nn import NormConfig
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.record import BenchmarkRecord, write_record
from largebatch.train import run
from largebatch.train.parse import parse

FORMULA = (
    "loss = mean over all tokens of the last tenth of the text after the last step, nats; "
    "time ratio = median over seeds of (seconds of largebatch's run / seconds of the plain loop)"
)
STEPS, EVERY, BATCH, CONTEXT = 2000, 500, 12, 64
PUBLISHED = 1.88  # nanoGPT's README


def ours(path: str, seed: int, folder: Path) -> tuple[float, float]:
    """Return loss and seconds of the recipe."""
    config = parse(
        [
            *("--recipe=nanogpt-shakespeare", f"--data.root={path}", f"--run.seed={seed}"),
            *(f"--run.dir={folder}", f"--schedule.length={STEPS}st", "--checkpoint.every=10ep"),
        ]
    )
    begun = time.perf_counter()
    outcome = run(config)
    seconds = time.perf_counter() - begun
    assert outcome.summary is not None
    return float(outcome.summary["loss"]), seconds


def plain(path: str, seed: int) -> tuple[float, float]:
    """Return loss and seconds of a loop written by hand."""
    begun = time.perf_counter()
    text = Path(path).read_text(encoding="utf-8")
    alphabet = {letter: number for number, letter in enumerate(sorted(set(text)))}
    tokens = torch.tensor([alphabet[letter] for letter in text])
    cut = int(0.9 * len(tokens))
    train, val = tokens[:cut], tokens[cut:]
    config = ModelConfig(name="gpt", layers=4, heads=4, width=128)
    offers = {"vocabulary": len(alphabet), "context": CONTEXT}
    model = build_model(config, NormConfig(), offers, seed=seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    rng, loss = np.random.default_rng(seed), math.nan
    for step in range(STEPS):
        climb = min(1.0, step / 100)
        along = max(0.0, (step - 100) / (STEPS - 100))
        rate = climb * (1e-4 + 0.5 * (1e-3 - 1e-4) * (1 + math.cos(math.pi * along)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.from_numpy(rng.integers(0, len(train) - CONTEXT, BATCH))
        rows = train[starts[:, None] + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad(set_to_none=True)
        logits = model(rows[:, :-1])
        cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % EVERY == 0:
            loss = judged(model, val)
    return loss, time.perf_counter() - begun


@torch.no_grad()
def judged(model: nn.Module, val: Tensor) -> float:
    """Return the mean loss over the windows of a text."""
    whole = (len(val) - 1) // CONTEXT
    inputs = val[: whole * CONTEXT].view(whole, CONTEXT)
    targets = val[1 : whole * CONTEXT + 1].view(whole, CONTEXT)
    total = 0.0
    for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
        total += float(cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"))
    return total / (whole * CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", help="write the record here")
    options = parser.parse_args()
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(options.seeds):
            found: dict[str, tuple[float, float]] = {}
            for name in ("largebatch", "plain")[:: 1 if number % 2 == 0 else -1]:
                place = Path(folder, f"{seed}")
                own = name == "largebatch"
                found[name] = ours(options.data, seed, place) if own else plain(options.data, seed)
            row = {"seed": seed}
            for name, (loss, seconds) in found.items():
                row |= {f"{name} loss": round(loss, 4), f"{name} seconds": round(seconds, 1)}
            row["time ratio"] = round(found["largebatch"][1] / found["plain"][1], 3)
            rows.append(row)
            print(row, flush=True)
    losses = [row["largebatch loss"] for row in rows]
    spread = f" +- {stdev(losses):.4f}" if len(losses) > 1 else ""
    notes = [
        f"loss {mean(losses):.4f}{spread}, published {PUBLISHED}; bar: within 0.05",
        f"time ratio {median(row['time ratio'] for row in rows):.3f}; bar: 1.2",
        f"{STEPS} steps of {BATCH} windows of {CONTEXT}, {torch.get_num_threads()} thread(s)",
    ]
    record = BenchmarkRecord("nanogpt-shakespeare", FORMULA, rows, notes=notes)
    print(record.table())
    if options.json:
        write_record(options.json, record)


if __name__ == "__main__":
    main()

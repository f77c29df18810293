"""Run directories as the trainer leaves them, made up."""

import json
import math
import random

import pytest


def hardware_lines(place, ranks, rng):
    """Return a reading of every rank at the place of a train line."""
    return [
        {
            **{key: place[key] for key in ("samples", "step", "epoch")},
            "split": "hardware",
            "rank": rank,
            "host": "node0",
            "gpu": f"GPU-{rank}",
            "gpu_utilization": 0.9 + 0.08 * rng.random(),
            "gpu_memory_bytes": 50e9 + rank * 1e9,
            "gpu_power_watts": 500 + 40 * rng.random() + 10 * rank,
            "host_cpu_utilization": 0.4 + 0.1 * rng.random(),
            "data_seconds": 0.002 + 0.0003 * rank,
        }
        for rank in range(ranks)
    ]


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run directory and returns its path."""

    def make(
        name="digits",
        epochs=10,
        batch=128,
        samples=1437,
        seed=0,
        finished=True,
        ranks=0,
        **config,
    ):
        rng = random.Random(seed)
        path = tmp_path / name
        path.mkdir()
        lines, seen, step = [], 0, 0
        rate = 0.1 * math.sqrt(batch / 128)
        due = 1.0
        for epoch in range(epochs):
            position = 0
            while position < samples:
                size = min(batch, samples - position)
                position, seen, step = position + size, seen + size, step + 1
                progress = seen / (epochs * samples)
                loss = 2.3 * math.exp(-6 * progress) + 0.05 + abs(rng.gauss(0, 0.05))
                line = {
                    "samples": seen,
                    "step": step,
                    "epoch": round(seen / samples, 6),
                    "split": "train",
                    "loss": loss,
                    "top1": max(0.1, min(1.0, 1 - loss / 2.5)),
                    "lr": rate * 0.5 * (1 + math.cos(math.pi * progress)),
                    "batch_size": size,
                    "samples_per_second": 5000 + rng.gauss(0, 150) + batch,
                    "clip_factor": min(1.0, 0.4 + progress + rng.random() * 0.3),
                    "order_hash": f"{rng.getrandbits(64):016x}",
                }
                if ranks:
                    line["compute_seconds"] = 0.05 + rng.random() * 0.004
                    line["communication_seconds"] = 0.006 + rng.random() * 0.004
                    line["optimizer_seconds"] = 0.003 + rng.random() * 0.0005
                    line["data_seconds"] = 0.0005 if rng.random() < 0.9 else 0.02
                    if step % 10 == 0:
                        lines += hardware_lines(line, ranks, rng)
                if step >= due:
                    due = max(step + 1, step * 1.1)
                    line["weight_norm"] = 40 + 2 * progress
                    line["weight_distance"] = 1.3 * math.log(step + 1) * math.sqrt(batch / 128)
                lines.append(line)
            top1 = 0.985 - 0.6 * math.exp(-1.1 * (epoch + 1)) + rng.gauss(0, 0.002)
            lines.append(
                {
                    "samples": seen,
                    "step": step,
                    "epoch": epoch + 1,
                    "split": "val",
                    "loss": 0.06 + 1.2 * math.exp(-0.9 * (epoch + 1)),
                    "top1": top1,
                    "count": 360,
                    "weight_norm": 42.0,
                    "weight_distance": 1.3 * math.log(step + 1.5) * math.sqrt(batch / 128),
                }
            )
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sections = {"model": "c_digits", "data": "digits", "lr": 0.1, "scaling": "sqrt", **config}
        (path / "config.yaml").write_text(
            "run:\n  dir: {path}\nmodel:\n  name: {model}\ndata:\n  name: {data}\n"
            "batch:\n  size: {batch}\n  plan: []\n"
            "norm:\n  kind: ghost\n  ghost_size: 32\noptim:\n  name: sgd\n  lr: {lr}\n"
            "  scaling: {scaling}\nschedule:\n  length: {epochs}ep\n  curve: cosine\n".format(
                path=path, batch=batch, epochs=epochs, **sections
            )
        )
        if finished:
            summary = {
                "top1": lines[-1]["top1"],
                "loss": lines[-1]["loss"],
                "samples": seen,
                "steps": step,
                "epochs": epochs,
                "global_batch": batch,
                "world_size": 2,
                "samples_per_second": 5123.4,
                "wall_seconds": 83.4,
            }
            (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make

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


PERPLEXITY = {"name": "perplexity", "better": "lower", "percent": False}
LANGUAGE = {
    "task": "causal_lm",
    "headline": PERPLEXITY,
    "figures": {
        "loss": {"name": "loss", "better": "lower", "percent": False},
        "perplexity": PERPLEXITY,
        "token_accuracy": {"name": "token_accuracy", "better": "higher", "percent": True},
    },
}


def language_figures(loss):
    return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 1 / (1 + loss)}


@pytest.fixture
def make_language_run(tmp_path):
    """Return a function that writes a language run of 0.8 epochs, whose last figure is no best."""

    def make(name="words", steps=400, probes=True):
        rng = random.Random(1)
        path = tmp_path / name
        path.mkdir()
        lines = []
        for step in range(1, steps + 1):
            progress = step / steps
            place = {"samples": 256 * step, "step": step, "epoch": round(0.8 * progress, 6)}
            loss = 3.3 + 7.2 * math.exp(-9 * progress)
            line = {
                **place,
                "split": "train",
                **language_figures(loss + abs(rng.gauss(0, 0.05))),
                "lr": 3e-4 * min(1, progress * 10),
                "batch_size": 256,
                "samples_per_second": 900 + rng.gauss(0, 20),
                "order_hash": f"{rng.getrandbits(64):016x}",
            }
            if probes and step % 20 == 0:
                line["noise_scale"] = 1e3 * (1 + 4 * progress) * rng.uniform(0.8, 1.2)
                line["hessian_top"] = 40 * math.exp(-progress) + rng.random()
                line["hessian_trace"] = 900 * math.exp(-progress) + 20 * rng.random()
            lines.append(line)
            if step % (steps // 8) == 0:
                held = loss + 0.1 + 0.3 * max(0, progress - 0.8)
                line = {**place, "split": "val", **language_figures(held), "count": 5000}
                if probes:
                    ema = language_figures(held - 0.05 * progress)
                    line |= {f"ema_{name}": value for name, value in ema.items()}
                    line["knn_top1"] = 0.2 + 0.3 * progress
                lines.append(line)
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (path / "task.json").write_text(json.dumps(LANGUAGE))
        (path / "config.yaml").write_text(
            f"run:\n  dir: {path}\nmodel:\n  name: gpt\ndata:\n  name: words\n"
            "batch:\n  size: 256\noptim:\n  name: adamw\n"
        )
        summary = {**language_figures(held), "world_size": 4, "wall_seconds": 114.0}
        (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make


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


@pytest.fixture
def make_noisy_run(make_language_run):
    """Return a function that writes a run whose noise scale has an interval, at first an open one.

    Args:
        times: factor of all noise scales.
    """

    def make(name="noisy", times=1.0, steps=400):
        path = make_language_run(name, steps=steps)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        layers = []
        for line in lines:
            scale = line.pop("noise_scale", None)
            if scale is None:
                continue
            line["noise_scale_low"] = 0.7 * scale * times
            if line["step"] > steps // 4:
                line |= {"noise_scale": scale * times, "noise_scale_high": 1.5 * scale * times}
            line |= {"noise_groups": 8, "noise_signal": 0.3, "noise_trace": 0.3 * scale}
            place = {key: line[key] for key in ("samples", "step", "epoch")}
            tensors = {"0.weight": [0.2, 0.2 * scale, scale], "0.bias": [-0.1, 3.0, None]}
            layers.append({"split": "noise", **place, "layers": tensors})
        for name, found in (("metrics", lines), ("layers", layers)):
            text = "".join(json.dumps(line) + "\n" for line in found)
            (path / f"{name}.jsonl").write_text(text)
        return path

    return make

"""`largebatch bench tokens`: a GPT's training steps beside a plain loop and Hugging Face's GPT-2.

All train a model of the same sizes on windows of the same text, drawn at random, with AdamW at one
rate. The plain loop is what an expert writes by hand around our model; Hugging Face's GPT-2 (where
``transformers`` is installed) is trained by the same loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch._errors import UserError
from largebatch.bench.throughput import Contender, breakdown, spread, trainer, windows
from largebatch.data import DataConfig, build_source
from largebatch.data.text import TextSource
from largebatch.models import ModelConfig, build_model
from largebatch.nn import NormConfig
from largebatch.optim import OptimConfig
from largebatch.processes import World
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device
from largebatch.record import BenchmarkRecord
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.tasks import CausalLMConfig
from largebatch.train.config import Config, PrecisionConfig

FORMULA = (
    "tokens/s = predicted tokens of a window's steps / its seconds, median over windows; "
    "times plain loop = median over rounds of (tokens/s / the plain loop's in the same round)"
)
UNIT, REFERENCE = "tokens/s", "plain loop"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """The model and its windows."""

    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int

    def model(self) -> ModelConfig:
        """Return the section of a config."""
        return ModelConfig("gpt", layers=self.layers, heads=self.heads, width=self.width)

    def data(self) -> DataConfig:
        """Return the section of a config: the bytes of Python's own library."""
        return DataConfig("stdlib", context=self.context, vocabulary=self.vocabulary)


def settings_of(model: str, context: int, vocabulary: int) -> Settings:
    """Read layers x heads x width.

    Raises:
        UserError: the text has another form, or the vocabulary is too small for bytes.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", model):
        raise UserError(
            f"largebatch bench tokens: --models {model}: layers x heads x width, such as 4x4x128"
        )
    if vocabulary < 256:
        raise UserError(
            f"largebatch bench tokens: --vocabulary {vocabulary}: the text is bytes: 256 or more"
        )
    layers, heads, width = map(int, model.split("x"))
    return Settings(layers, heads, width, context, vocabulary)


def run(batches: Sequence[int], settings: Settings, seconds: float, rounds: int) -> BenchmarkRecord:
    """Measure every batch in float32, on a GPU in bfloat16 too.

    Args:
        batches: windows of a step.
    """
    device = choose_device(World())
    if device.type == "cpu":
        keep_freed_memory()
    kinds = list(PRECISIONS) if device.type == "cuda" else ["fp32"]
    rows: list[dict[str, Any]] = []
    for batch in batches:
        for kind in kinds:
            rows += _measure(batch, kind, settings, device, seconds, rounds)
    notes = [
        f"GPT of {settings.layers} layers, {settings.heads} heads, width {settings.width}, windows"
        f" of {settings.context} tokens, vocabulary {settings.vocabulary:,}; AdamW; one device",
        f"{rounds} windows of about {seconds:g} s each, contenders in turn",
    ]
    return BenchmarkRecord("tokens", FORMULA, rows, notes=notes)


def _measure(
    batch: int, kind: str, settings: Settings, device: torch.device, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    config = Config(
        task=CausalLMConfig("causal_lm"),
        model=settings.model(),
        data=settings.data(),
        batch=BatchConfig(size=batch),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.1),
        schedule=ScheduleConfig(length=Duration.parse("100000ep"), curve="constant"),
        precision=PrecisionConfig(compute=kind),  # type: ignore[arg-type]
    )
    ours = trainer("largebatch", config, World(), device)
    ours.images = batch * settings.context
    offers = {"vocabulary": settings.vocabulary, "context": settings.context}
    own = build_model(settings.model(), NormConfig(), offers, seed=0).to(device)
    contenders = [ours, _plain(REFERENCE, own, own, batch, kind, settings, device)]
    absent = {}
    try:
        theirs = _hugging_face(settings).to(device)
        name = "Hugging Face's GPT-2"
        logits = lambda tokens: theirs(tokens).logits  # noqa: E731
        contenders.append(_plain(name, theirs, logits, batch, kind, settings, device))
    except ImportError as error:
        absent["Hugging Face's GPT-2"] = str(error)
    found = windows(contenders, seconds, rounds, World())
    rows = []
    for contender in contenders:
        rates = found[contender.name]
        ratios = [a / b for a, b in zip(rates, found[REFERENCE], strict=True)]
        head = {"contender": contender.name, "batch": batch, "precision": kind}
        count = sum(p.numel() for p in contender.model.parameters())
        rows.append(
            head
            | {"parameters": count}
            | spread(rates, UNIT)
            | {f"times {REFERENCE}": round(median(ratios), 3)}
            | breakdown(contender, found[contender.name])
        )
    return rows + [
        {"contender": name, "batch": batch, "precision": kind, UNIT: f"not run: {why}"}
        for name, why in absent.items()
    ]


def _plain(
    name: str,
    model: nn.Module,
    logits: Callable[[Tensor], Tensor],
    batch: int,
    kind: str,
    settings: Settings,
    device: torch.device,
) -> Contender:
    source = build_source(settings.data(), "train")
    assert isinstance(source, TextSource)
    text = torch.from_numpy(source.tokens.astype("int64")).to(device)
    offsets = torch.arange(settings.context + 1, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    model.train()

    def step() -> None:
        starts = torch.randint(len(text) - settings.context, (batch, 1), device=device)
        rows = text[starts + offsets]
        with torch.autocast(device.type, PRECISIONS[kind], enabled=kind != "fp32"):
            out = logits(rows[:, :-1]).flatten(0, 1)
            loss = cross_entropy(out.float(), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return Contender(name, batch * settings.context, step, model)


def _hugging_face(settings: Settings) -> nn.Module:
    """Return GPT-2 of the same sizes, without dropout.

    Raises:
        ImportError: ``transformers`` is not installed.
    """
    transformers: Any = import_module("transformers")
    sizes = transformers.GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model: nn.Module = transformers.GPT2LMHeadModel(sizes)
    return model

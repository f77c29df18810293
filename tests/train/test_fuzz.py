"""Malformed configs are refused with one line, well-formed ones accepted, whatever they are.

The default suite runs hundreds; ``-m slow`` runs 2,000 and 500, and with LARGEBATCH_LONG_TESTS set
20,000 and 2,000, and prints the count of every key and kind.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.schedule import Duration
from largebatch.train.check import check
from largebatch.train.keys import known_keys
from largebatch.train.parse import parse

KEYS = known_keys()
LONG = "LARGEBATCH_LONG_TESTS" in os.environ
INFINITE = [float("nan"), float("inf"), float("-inf")]

# --- what is wrong with a value of each key -------------------------------------------------------

# Values of the right type that are out of range; {} where the type allows everything.
RANGE: dict[str, list[Any]] = {
    "run.seed": [-1, 2**63, -(2**70)],
    "run.nproc": [0, -3, 4097],
    "run.target": [{}, {"loss": 0.3, "top1": 0.9}, *({"loss": value} for value in INFINITE)],
    "task.name": ["clasification", "", "language model"],
    "task.label_smoothing": [-0.1, 1.0, 7.0, *INFINITE],
    "model.name": ["resnet51", "", "os:abort", "no_such_module:f", "resnet18:", ":"],
    "model.num_classes": [1, 0, -10],
    "model.residual_gamma": INFINITE,
    "model.drop": [-0.1, 1.0, *INFINITE],
    "model.drop_path": [-0.1, 1.0, *INFINITE],
    "model.layers": [0, -1],
    "model.heads": [0, -1],
    "model.width": [0, -128],
    "model.memory": [-1, -64],
    "data.name": ["minst", "", "math:not_there", "shutil:rmtree", "imagenet-1k"],
    "data.skip_corrupt": [-1],
    "data.workers": [-1],
    "data.image_size": [0, -32],
    "data.mixup": [-0.2, *INFINITE],
    "data.mixup_layers": [[0], ["layer9"]],  # data.mixup is 0
    "data.cutmix": [-0.2, *INFINITE],
    "data.limit": [0, -5],
    "data.least_area": [0.0, -1.0, 1.5, 0.5, *INFINITE],
    "data.jitter": [-0.1, 3.0, 0.2, *INFINITE],
    "data.blur": [True],
    "data.tokenizer": ["", "bytes"],
    "data.context": [0, -1, 64],
    "data.vocabulary": [0, -1, 300],
    "data.held_out": [0.0, 1.0, -0.1, 0.5, *INFINITE],
    "data.streams": [0, -1, 8],
    "data.digest": ["ab12", "0"],
    "batch.size": [0, -256],
    "batch.micro": [0, -32],
    "batch.reference": [0, -256],
    "batch.plan": [[{"size": 0}], [{"size": 8}, {"size": 16}], [{"lr_multiplier": -1.0}],
                   [{"micro": 0}], [{"image_size": -1}], [{"warmup": "5%"}]],
    "batch.max": [0, -512],
    "batch.min": [0, -8],
    "batch.late": ["0ep", "1.5st"],
    "batch.noise_scale": [0.0, -3.0, *INFINITE],
    "batch.noise_every": ["0st", "101%"],
    "batch.noise_half_life": ["0ep", "101%"],
    "norm.half_life": ["0ep", "101%"],
    "optim.decay_timescale": ["0ep", "101%"],
    "schedule.patience": ["0ep", "101%"],
    "norm.kind": ["ghots", "", "batch norm"],
    "norm.ghost_size": [0, -32],
    "norm.sync_ranks": [0, -2],
    "norm.groups": [0, -4],
    "norm.topk": [0, -3],
    "norm.momentum": [-0.1, 1.5, *INFINITE],
    "norm.eps": [0.0, -1e-5, *INFINITE],
    "optim.name": ["sdg", "", "larz"],
    "optim.lr": [-0.1, *INFINITE],
    "optim.momentum": [-0.1, 1.1, *INFINITE],
    "optim.dampening": [-0.1, 1.1, *INFINITE],
    "optim.weight_decay": [-0.1, *INFINITE],
    "optim.clip_norm": [0.0, -5.0, *INFINITE],
    "optim.adaptive_clip": [0.0, -0.01, *INFINITE],
    "optim.adaptive_clip_eps": [-1e-3, *INFINITE],
    "optim.sam_rho": [-0.05, *INFINITE],
    "optim.betas": [[0.9, 1.0], [-0.1, 0.9], [0.9, float("nan")]],
    "optim.eps": [-1.0, *INFINITE],
    "optim.preset": ["papr", ""],
    "optim.trust_coefficient": [-1.0, *INFINITE],
    "optim.momentum_half_life": ["0ep", "0sa", "101%"],
    "optim.beta2_half_life": ["0ep", "0st", "101%"],
    "optim.transition_center": ["101%", "1.5st"],
    "optim.transition_period": ["0ep", "101%"],
    "optim.options": [{"amsgrad": True}, {"no_such_argument": 1}],
    "schedule.length": ["0ep", "0sa", "50%", "101%", "1.5st", "0.5sa"],
    "schedule.warmup": ["101%", "1.5st"],
    "schedule.curve": ["cosin", "", "linear warmup"],
    "schedule.milestones": [["101%"], ["1.5st"]],
    "schedule.gamma": [0.0, -0.1, *INFINITE],
    "schedule.power": [0.0, -2.0, *INFINITE],
    "schedule.end": [-0.1, *INFINITE],
    "schedule.cycle": ["0ep", "101%"],
    "schedule.cycle_mult": [0.5, -1.0, *INFINITE],
    "precision.loss_scale": [0.0, -1.0, *INFINITE],
    "evaluate.every": ["0ep", "101%"],
    "evaluate.parts": [0, -1],
    "ema.half_life": ["0ep", "101%"],
    "snapshot.cycles": [-1, 1001],
    "telemetry.every": ["0st", "101%"],
    "telemetry.layers": ["0st", "101%"],
    "telemetry.hardware_every": [-1.0, *INFINITE],
    "telemetry.prometheus_port": [-1, 65536],
    "distributed.engine": ["dpp", "", "horovod"],
    "distributed.torus": ["2by4", "0x4", "", "4", "2x4x2", "-2x4"],
    "distributed.bucket_mb": [0.0, -25.0, "automatic", *INFINITE],
    "distributed.timeout": [0.0, -1.0, *INFINITE],
    "distributed.heartbeat": [-1.0, *INFINITE],
    "distributed.check_every": ["0st", "101%"],
    "distributed.shard_ranks": [0, -2],
    "distributed.deepspeed_config": ["no_such_ds_config.json", "."],
    "checkpoint.every": ["0ep", "101%"],
    "checkpoint.keep": [0, -1],
    "checkpoint.resume": ["automatic", ""],
}  # fmt: skip

# Settings that cannot go together, found under each of their keys.
CONTRADICTIONS: list[dict[str, Any]] = [
    {"norm.kind": "ghost"},
    {"norm.kind": "l1"},
    {"norm.kind": "batch_channel"},
    {"norm.kind": "ghost", "norm.ghost_size": 32, "norm.topk": 5},
    {"norm.kind": "batch", "norm.ghost_size": 32},
    {"norm.kind": "none", "norm.running": "last"},
    {"norm.kind": "layer", "norm.ghost_size": 32},
    {"norm.kind": "instance", "norm.momentum": 0.2},
    {"norm.kind": "layer", "norm.groups": 4},
    {"norm.kind": "ghost", "norm.ghost_size": 32, "norm.sync_ranks": 2},
    {"norm.kind": "sync", "norm.sync_ranks": 3, "run.nproc": 4},
    {"norm.kind": "sync", "norm.ghost_size": 32, "batch.micro": 16},
    {"norm.kind": "sync", "batch.plan": [{"micro": "auto"}]},
    {"norm.kind": "l1", "norm.sync_ranks": 2, "batch.micro": "auto"},
    {"norm.kind": "bounded_weight", "norm.ghost_size": 32},
    {"norm.kind": "ghost", "norm.ghost_size": 32, "batch.micro": 48},
    {"norm.kind": "ghost", "norm.ghost_size": 32, "batch.plan": [{"micro": 40}]},
    {"optim.nesterov": True, "optim.momentum": 0.0},
    {"optim.nesterov": True, "optim.dampening": 0.5},
    {"optim.momentum_correction": True, "optim.lr_inside_momentum": False},
    {"optim.dampen_first_step": True, "optim.dampening": 0.0},
    {"optim.lr_correction": True, "optim.weight_decay": 0.0},
    {"optim.lr_correction": True, "optim.weight_decay": 0.1, "optim.nesterov": True},
    {"optim.name": "adam", "optim.nesterov": True},
    {"optim.name": "lars", "optim.preset": "nvlamb"},
    {"optim.name": "lamb", "optim.trust_coefficient": 0.1},
    {"optim.name": "sgd", "optim.transition_center": "5ep"},
    {"optim.sam_scope": "rank"},
    {"optim.name": "adam", "optim.offload": True},
    {"distributed.engine": "fsdp", "optim.offload": True},
    {"optim.name": "apex_lamb", "optim.momentum": 0.5},
    {"optim.name": "sgd", "optim.betas": [0.8, 0.9]},
    {"optim.name": "sgd", "optim.options": {"amsgrad": True}},
    {"schedule.curve": "cosine", "schedule.milestones": ["1ep"]},
    {"schedule.curve": "multistep", "schedule.cycle": "2ep"},
    {"schedule.curve": "cosine", "snapshot.cycles": 5},
    {"schedule.regime": "steps", "schedule.length": "500st"},
    {"precision.compute": "fp64", "distributed.backend": "nccl"},
    {"precision.compute": "bf16", "precision.loss_scale": 1024.0},
    {"distributed.allreduce": "flat", "distributed.torus": "2x4"},
    {"distributed.allreduce": "flat", "distributed.wire_dtype": "bf16"},
    {"data.pipeline": "dali", "data.name": "digits"},
    {"data.name": "text", "data.image_size": 32},
    {"data.name": "stdlib", "data.mixup": 0.2},
    {"data.name": "stdlib", "data.pipeline": "dali"},
    {"distributed.engine": "ddp", "distributed.shard_ranks": 2},
    {"distributed.engine": "fsdp", "distributed.zero_stage": 2},
    {"distributed.engine": "fsdp", "distributed.torus": "2x4"},
    {"distributed.engine": "deepspeed", "distributed.wire_dtype": "bf16"},
    {"distributed.engine": "fsdp", "distributed.deepspeed_config": "ds.json"},
    {"distributed.engine": "fsdp", "optim.name": "muon"},
    {"distributed.engine": "fsdp", "optim.sam_rho": 0.05, "optim.sam_scope": "rank"},
    {"distributed.engine": "fsdp", "snapshot.cycles": 2, "schedule.curve": "sgdr"},
    {"distributed.engine": "deepspeed", "precision.compute": "fp64"},
    {"distributed.engine": "deepspeed", "optim.sam_rho": 0.05},
    {"distributed.engine": "deepspeed", "optim.adaptive_clip": 0.1},
    {"distributed.engine": "ddp", "optim.name": "deepspeed"},
]

FILES = {
    "run.dir": lambda folder: str(_a_file(folder)),
    "checkpoint.resume": lambda folder: str(folder / "no" / "checkpoint"),
}


def _a_file(folder: Path) -> Path:
    path = folder / "a_file"
    path.write_text("in the way")
    return path


def options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def wrong_types(hint: Any) -> list[Any]:
    """Return values that no option of ``hint`` takes."""
    kinds = options(hint)
    kinds = tuple(str if kind is UserPath else kind for kind in kinds)
    values: list[Any] = [{"a": {"b": 1}}, [[1]], [{"x": 1}]]
    if any(kind is dict or get_origin(kind) is dict for kind in kinds):
        values = [[[1]], [{"x": 1}], "some text", 3]
    elif any(get_origin(kind) is list and get_origin(get_args(kind)[0]) is dict for kind in kinds):
        values = [{"a": {"b": 1}}, [[1]], 3]
    if str not in kinds:
        values += ["some text", "3 apples", "tru"]
    if bool not in kinds:
        values.append(True)
    if not {str, int, float} & set(kinds):
        values += [17, 2.5]
    elif int in kinds and float not in kinds:
        values += [1.5, "1e400", "0x1g"]
    if Duration in kinds:
        values += ["5", 5, "-3ep", "5 parsecs", "nan ep", "3epp", "ep", "", "1e99999ep"]
    if NoneType not in kinds:
        values.append(None)
    return values


def misspelt(key: str, rng: random.Random) -> str:
    section, _, name = key.partition(".")
    if not name:
        return f"{section}s"
    while True:
        letters = list(name)
        at = rng.randrange(len(letters))
        letters[at : at + 1] = rng.choice([[], [letters[at]] * 2, [rng.choice("abcxyz_")]])
        wrong = "".join(letters)
        if rng.random() < 0.2:
            return f"{section}s.{name}"
        if wrong and f"{section}.{wrong}" not in KEYS:
            return f"{section}.{wrong}"


# --- ways to hand a config over -----------------------------------------------------------


def tree(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[section] = value
    return nested


def as_file(folder: Path, flat: dict[str, Any]) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree(flat), allow_unicode=True), encoding="utf-8")
    return ["--config", str(path)]


def as_options(folder: Path, flat: dict[str, Any]) -> list[str]:
    import json

    # JSON has neither nan nor inf; YAML writes them with a dot.
    text = {k: json.dumps(v).replace("NaN", ".nan").replace("Infinity", ".inf") if
            not isinstance(v, str) else v for k, v in flat.items()}  # fmt: skip
    return [f"--{key}={value}" for key, value in text.items()]


def bad_yaml(folder: Path, key: str, rng: random.Random) -> list[str]:
    section, _, name = key.partition(".")
    broken = rng.choice(
        [
            f"{section}: {{{name}: [1, 2",
            f"{section}:\n\t{name}: 1\n",
            f"{section}:\n  {name}: 'open\n",
            f"{section}:\n  {name}: @x\n",
            f"{section}: &a\n  {name}: *b\n",
            f"{section}:\n  {name}: 1\n {name}: 2\n",
            f"{section}:\n  {name}: !!python/object/apply:os.system ['true']\n",
        ]
    )
    (folder / "broken.yaml").write_text(broken)
    return ["--config", str(folder / "broken.yaml")]


def not_utf8(folder: Path, key: str, rng: random.Random) -> list[str]:
    section, _, name = key.partition(".")
    junk = bytes(rng.choice([0xFF, 0xFE, 0xC0, 0x80]) for _ in range(rng.randint(1, 4)))
    (folder / "latin.yaml").write_bytes(f"{section}:\n  {name}: ".encode() + junk + b"\n")
    return ["--config", str(folder / "latin.yaml")]


Case = tuple[str, str, list[str], list[str]]


def case(key: str, kind: str, folder: Path, rng: random.Random) -> Case | None:
    """Return (key, kind, arguments, words the error must hold), or None if it does not apply."""
    hand_over: Callable[[Path, dict[str, Any]], list[str]] = rng.choice([as_file, as_options])
    if kind == "type":
        values = wrong_types(KEYS[key])
        if {str, UserPath} & set(options(KEYS[key])) and hand_over is as_options:
            hand_over = as_file  # on the command line everything is text
        return key, kind, hand_over(folder, {key: rng.choice(values)}), [key]
    if kind == "range":
        if key not in RANGE:
            return None
        return key, kind, hand_over(folder, {key: rng.choice(RANGE[key])}), [key]
    if kind == "unknown":
        wrong = misspelt(key, rng)
        return key, kind, hand_over(folder, {wrong: 1}), [wrong.split(".")[0]]
    if kind == "missing file":
        if key not in FILES:
            missing = str(folder / "not" / "there.yaml")
            return key, kind, [f"--config={missing}", f"--{key}=1"], [missing]
        return key, kind, hand_over(folder, {key: FILES[key](folder)}), [key]
    if kind == "bad YAML":
        return key, kind, bad_yaml(folder, key, rng), ["broken.yaml"]
    if kind == "non-UTF-8":
        return key, kind, not_utf8(folder, key, rng), ["latin.yaml"]
    assert kind == "contradiction"
    found = [c for c in CONTRADICTIONS if key in c]
    if not found:
        return None
    chosen = rng.choice(found)
    return key, kind, hand_over(folder, chosen), []


KINDS = ("type", "range", "unknown", "missing file", "bad YAML", "non-UTF-8", "contradiction")


def refuse(arguments: list[str], words: list[str]) -> None:
    """Check that the command refuses ``arguments`` as it should: one line that names the key."""
    try:
        check(parse(arguments))
    except UserError as error:
        text = str(error)
        assert "\n" not in text and 0 < len(text) < 1200, text
        assert "Traceback" not in text
        for word in words:
            assert word in text, (arguments, text)
        return
    raise AssertionError(f"accepted: {arguments}")


def run_malformed(count: int, folder: Path) -> Counter[tuple[str, str]]:
    seen: Counter[tuple[str, str]] = Counter()
    cells = [(key, kind) for key in KEYS for kind in KINDS]

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(number=st.integers(0, 2**32))
    def one(number: int) -> None:
        rng = random.Random(number)
        # The cells in turn, so that every key meets every kind; what goes into one is drawn.
        while True:
            key, kind = cells[sum(seen.values()) % len(cells)]
            drawn = case(key, kind, folder, rng)
            if drawn is not None:
                break
            cells.remove((key, kind))
        _, _, arguments, words = drawn
        refuse(arguments, words)
        seen[key, kind] += 1

    while sum(seen.values()) < count:  # hypothesis stops early where it has seen a draw before
        one()
    return seen


def applicable(folder: Path) -> set[tuple[str, str]]:
    rng = random.Random(0)
    return {(key, kind) for key in KEYS for kind in KINDS if case(key, kind, folder, rng)}


def test_every_number_has_a_range_or_is_free() -> None:
    free = {"run.dir", "run.name", "run.deterministic", "model.init_from", "model.compile",
            "batch.noise_source",
            "model.channels_last", "model.tied_embeddings", "data.root", "evaluate.also", "probes",
            "checkpoint.at", "optim.nesterov", "optim.dampen_first_step",
            "optim.lr_inside_momentum", "optim.momentum_correction", "optim.lr_correction",
            "optim.decay_norm_and_bias", "optim.adapt_norm_and_bias", "optim.offload"}  # fmt: skip
    for key, hint in KEYS.items():
        literal = all(get_origin(o) is Literal or o is NoneType for o in options(hint))
        assert (key in RANGE) != (key in free or literal), f"{key}: say what is out of its range"


def test_malformed_configs_are_refused_in_one_line(tmp_path: Path) -> None:
    seen = run_malformed(500, tmp_path)
    assert sum(seen.values()) >= 500
    assert len(seen) >= min(500, len(applicable(tmp_path)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_malformed_configs(tmp_path: Path) -> None:
    seen = run_malformed(20_000 if LONG else 2_000, tmp_path)
    assert set(seen) == applicable(tmp_path)
    print(f"\n{'key':<28}" + "".join(f"{kind:>14}" for kind in KINDS))
    for key in KEYS:
        print(f"{key:<28}" + "".join(f"{seen[key, kind]:>14}" for kind in KINDS))
    print(f"{sum(seen.values())} malformed configs refused")


# --- well-formed configs --------------------------------------------------------------------

DURATIONS = ["1ep", "0.5ep", "30ep", "1.28Msa", "500ksa", "12345sa", "500st", "1st", "5%", "100%"]
LENGTHS = ["1ep", "0.5ep", "90ep", "1.28Msa", "500st", "7sa"]
WELL_FORMED: dict[str, list[Any]] = {
    "run.dir": ["runs/x", "x y", "déjà"],
    "run.name": ["a name", "größe", None],
    "run.seed": [0, 1, 2**40],
    "run.deterministic": [True, False],
    "run.nproc": [1, 2, 64],
    "run.target": [None, {"loss": 0.3}, {"top1": 0.9}],
    "run.target_top1": [None, 0.5, 1.0],
    "task.label_smoothing": [0.0, 0.1, 0],
    "model.name": ["resnet50", "f1", "cifar_resnet56", "digits_cnn", "torch.nn:Sequential"],
    "model.num_classes": [None, 2, 1000],
    "model.init_from": [None],
    "model.compile": [True, False],
    "model.channels_last": [True, False],
    "model.residual_gamma": [None, 0.0, 1],
    "model.classifier": ["learned", "hadamard", "orthonormal"],
    "model.init": ["default", "kaiming", "xavier"],
    "model.drop": [None, 0.0, 0.5],
    "model.drop_path": [0.0, 0.25],
    "model.layers": [None, 1, 12],
    "model.heads": [None, 16],
    "model.width": [None, 1024],
    "model.memory": [None, 0, 64],
    "model.tied_embeddings": [None, True, False],
    "data.name": ["digits", "mnist", "imagefolder", "synthetic", "torch.utils.data:TensorDataset"],
    "data.root": [None, "/data/x"],
    "data.skip_corrupt": [0, 10],
    "data.pipeline": ["torchvision"],
    "data.workers": [None, 0, 8],
    "data.image_size": [None, 32, 224],
    "data.augment": ["none", "standard"],
    "data.mixup": [0.0, 0.2, 1],
    "data.mixup_layers": [[]],
    "data.cutmix": [0.0, 1.0],
    "data.limit": [None, 1, 10000],
    "batch.size": [1, 7, 256, 65536],
    "batch.micro": [None, "auto", 64, 640],
    "batch.reference": [None, 256],
    "batch.plan": [[], [{"until": "1ep", "size": 64}, {"size": 128, "lr_multiplier": 0.5}]],
    "norm.momentum": [None, 0.1, 0.0, 1.0],
    "norm.eps": [None, 1e-5, 0.001],
    "optim.lr": [0, 0.1, 1e-3, 31.2],
    "optim.scaling": ["none", "linear", "sqrt"],
    "optim.weight_decay": [0, 1e-4, 0.1],
    "optim.decay_norm_and_bias": [True, False],
    "optim.clip_norm": [None, 5, 0.1],
    "optim.adaptive_clip": [None, 0.01],
    "optim.sam_rho": [None, 0.05, 0],
    "schedule.length": LENGTHS,
    "schedule.warmup": [None, *DURATIONS],
    "schedule.warmup_start": ["zero", "reference"],
    "schedule.gamma": [0.1, 1, 0.5],
    "schedule.power": [1, 2.0, 0.5],
    "schedule.end": [0, 1e-4],
    "precision.compute": ["fp32", "bf16", "fp16", "fp64"],
    "ema.half_life": [None, *DURATIONS],
    "telemetry.every": DURATIONS,
    "telemetry.layers": DURATIONS,
    "telemetry.hardware_every": [0, 5.0],
    "telemetry.prometheus_port": [None, 0, 9100],
    "distributed.backend": ["auto", "gloo"],
    "distributed.allreduce": ["auto", "torus"],
    "distributed.torus": [None, "2x4", "16x8"],
    "distributed.wire_dtype": ["fp32", "bf16", "fp16"],
    "distributed.bucket_mb": [1, 25.0, 0.5, "auto"],
    "distributed.timeout": [1, 1800.0],
    "distributed.heartbeat": [0, 120.0],
    "distributed.check_every": DURATIONS,
    "checkpoint.every": DURATIONS,
    "checkpoint.keep": [1, 5],
    "checkpoint.resume": ["auto", "never"],
}
NO_TORUS = {
    "distributed.allreduce": "auto",
    "distributed.torus": None,
    "distributed.wire_dtype": "fp32",
}
GROUPS: list[dict[str, Any]] = [
    {"norm.kind": "ghost", "norm.ghost_size": 32},
    {"norm.kind": "ghost", "norm.ghost_size": 64, "norm.running": "averaged"},
    {"norm.kind": "none"},
    {"norm.kind": "weight"},
    {"norm.kind": "bounded_weight"},
    {"norm.kind": "l1", "norm.ghost_size": 32},
    {"norm.kind": "sync", "norm.sync_ranks": 2, "run.nproc": 4, "batch.micro": 64},
    {"norm.kind": "sync", "norm.ghost_size": 128, "batch.micro": None},
    {"norm.kind": "linf", "norm.sync_ranks": 1, "batch.micro": 32},
    {"norm.kind": "group", "norm.groups": 8, "norm.momentum": None},
    {"norm.kind": "layer", "norm.momentum": None},
    {"norm.kind": "topk", "norm.ghost_size": 32, "norm.topk": 5},
    {"optim.name": "adamw", "optim.betas": [0.8, 0.99], "optim.eps": 1e-6},
    {"optim.name": "muon", "optim.momentum": 0.95},
    {"optim.name": "sgdw", "optim.nesterov": True, "optim.momentum": 0.95},
    {"optim.name": "rmsprop_warmup", "optim.transition_center": "5%", "optim.eps": 1e-6},
    {"optim.sam_rho": 0.1, "optim.sam_scope": "rank"},
    {"optim.name": "lars", "optim.preset": "larc", "optim.trust_coefficient": 0.01},
    {"optim.name": "lamb", "optim.preset": "author", "optim.adapt_norm_and_bias": False},
    {"optim.name": "sgd", "optim.nesterov": True, "optim.momentum_half_life": "2ksa"},
    {"optim.name": "sgd", "optim.dampening": 0.9, "optim.dampen_first_step": True},
    {"optim.name": "sgd", "optim.lr_inside_momentum": True, "optim.momentum_correction": True},
    {
        "optim.lr_correction": True,
        "optim.weight_decay": 5e-4,
        "optim.clip_norm": None,
        "optim.adaptive_clip": None,
        "optim.sam_rho": None,
    },
    {"optim.name": "adam", "optim.options": {"amsgrad": True}},
    {
        "data.name": "stdlib",
        "data.image_size": None,
        "data.skip_corrupt": 0,
        "data.mixup": 0.0,
        "data.mixup_layers": [],
        "data.cutmix": 0.0,
        "data.tokenizer": "characters",
        "data.context": 64,
        "data.held_out": 0.2,
        "data.vocabulary": 300,
        "data.digest": "ab",
    },
    {
        "data.name": "text",
        "data.image_size": None,
        "data.skip_corrupt": 0,
        "data.mixup": 0.0,
        "data.mixup_layers": [],
        "data.cutmix": 0.0,
        "data.streams": 8,
        "data.tokenizer": "x.json",
        "batch.plan": [{"until": "1ep"}, {"extent": 64, "warmup": "2%"}],
    },
    {"optim.name": "lamb", "optim.offload": True},
    {"schedule.curve": "multistep", "schedule.milestones": ["1ep", "50%"]},
    {"schedule.curve": "sgdr", "schedule.cycle": "2ep", "schedule.cycle_mult": 2},
    {"schedule.curve": "cyclical", "schedule.cycle": "2ep", "schedule.cycle_shape": "triangular2"},
    {"schedule.curve": "poly"},
    {"schedule.curve": "sgdr", "snapshot.cycles": 5},
    {"precision.compute": "fp16", "precision.loss_scale": 1024},
    {"distributed.engine": "fsdp", "distributed.shard_ranks": 2, **NO_TORUS},
    {
        **NO_TORUS,
        "distributed.engine": "deepspeed",
        "distributed.zero_stage": 2,
        "precision.compute": "bf16",
        "optim.adaptive_clip": None,
        "optim.sam_rho": None,
    },
]


def one_target(keys: set[str]) -> bool:
    """An alias and the key that it stands for do not go together."""
    return not {"run.target", "run.target_top1"} <= keys


def run_well_formed(count: int, folder: Path) -> Counter[str]:
    seen: Counter[str] = Counter()

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        keys=st.sets(st.sampled_from(sorted(WELL_FORMED)), max_size=8).filter(one_target),
        group=st.sampled_from([{}, *GROUPS]),
        number=st.integers(0, 2**32),
    )
    def one(keys: set[str], group: dict[str, Any], number: int) -> None:
        rng = random.Random(number)
        flat = {key: rng.choice(WELL_FORMED[key]) for key in sorted(keys)} | group
        arguments = rng.choice([as_file, as_options])(folder, flat)
        check(parse(arguments))
        seen.update(list(flat))
        seen[""] += 1

    while seen[""] < count:
        one()
    return seen


def test_well_formed_configs_are_accepted(tmp_path: Path) -> None:
    assert run_well_formed(100, tmp_path)[""] >= 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_well_formed_configs(tmp_path: Path) -> None:
    seen = run_well_formed(2_000 if LONG else 500, tmp_path)
    assert set(WELL_FORMED) <= set(seen)
    print(f"\n{seen['']} well-formed configs accepted")

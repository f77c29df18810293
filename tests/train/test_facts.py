"""What entries say of themselves: complete, true, and the only place that knows it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import largebatch
from largebatch._registry import Facts
from largebatch.cli import main
from largebatch.data import datasets
from largebatch.engine import engines
from largebatch.models import models
from largebatch.nn import NormConfig, norms, spans_ranks
from largebatch.nn.registry import unused_keys
from largebatch.nn.weight_norm import FORMS
from largebatch.optim import LayerwiseOptimizer, OptimConfig, build_optimizer, optimizers
from largebatch.optim.registry import keys_of_some
from largebatch.schedule import curves
from largebatch.tasks import ClassificationConfig, tasks
from largebatch.train.config import FREE_KEYS, RANK_KEYS, Config
from largebatch.train.registries import REGISTRIES, chosen

PACKAGE = Path(largebatch.__file__).parent


# Of then: what has been added since says for itself what it is.
BEFORE = {
    *("batch", "none", "ghost", "sync", "l1", "linf", "topk", "layer", "instance", "group", *FORMS),
    *("apex_lamb", "deepspeed", "lamb", "lars", "muon", "rmsprop_warmup", "sgd", "sgdw", "adam"),
    *("adamw", "nadam", "radam", "adagrad", "rmsprop", "adadelta", "adamax"),
    *("ddp", "fsdp"),
    *("constant", "cosine", "cyclical", "multistep", "poly", "sgdr"),
    *("arrays", "cifar10", "cifar100", "digits", "imagefolder", "mnist", "fashion_mnist"),
    "synthetic",
}


def having(registry: Any, holds: Any) -> set[str]:
    assert BEFORE & set(registry.names())
    return {entry.name for entry in registry if entry.name in BEFORE and holds(entry.facts)}


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.key)
def test_every_entry_has_the_facts_of_its_registry(registry: Any) -> None:
    kinds = {type(entry.facts) for entry in registry}
    assert len(kinds) == 1 and all(issubclass(kind, Facts) for kind in kinds)
    if registry is not models:  # which differ in nothing that others ask for
        assert kinds != {Facts}


def test_facts_are_given_where_an_entry_registers() -> None:
    """By its own file, not by the registry's default; a task's come from its class."""
    for registry in ("optimizers", "norms", "curves", "engines"):
        for path in PACKAGE.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "register"
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id == registry
                ):
                    keywords = {each.arg for each in node.keywords}
                    assert len(node.args) == 4 or "facts" in keywords, f"{path}:{node.lineno}"


def test_the_norms_facts_are_those_of_before() -> None:
    sample = {"layer", "instance", "group"}
    assert having(norms, lambda f: f.spans != "never") == {"sync", "l1", "linf", "topk"}
    assert having(norms, lambda f: f.spans == "always") == {"sync"}
    assert having(norms, lambda f: f.per_sample) == sample
    assert having(norms, lambda f: not f.ghosts) == {"batch", "none", *sample, *FORMS}
    assert having(norms, lambda f: f.weights) == set(FORMS)
    assert having(norms, lambda f: f.per_forward) == {"batch"}
    assert unused_keys("topk") == {"groups": None}
    assert set(unused_keys("group")) == {
        *("topk", "sync_ranks", "ghost_size", "running", "momentum", "half_life"),
    }
    assert spans_ranks(NormConfig("sync")) and not spans_ranks(NormConfig("l1", 32))
    assert spans_ranks(NormConfig("l1", sync_ranks=2))


def test_the_optimizers_facts_are_those_of_before() -> None:
    assert keys_of_some() == [
        *("momentum", "nesterov", "dampening", "dampen_first_step", "lr_inside_momentum"),
        *("momentum_correction", "lr_correction", "decay_timescale", "adapt_norm_and_bias"),
        "preset",
        *("trust_coefficient", "betas", "eps", "momentum_half_life", "beta2_half_life"),
        *("transition_center", "transition_period"),
    ]
    assert having(optimizers, lambda f: f.whole_matrices) == {"muon"}
    assert having(optimizers, lambda f: f.by_engine) == {"deepspeed"}
    assert having(optimizers, lambda f: "transition_center" in f.takes) == {"rmsprop_warmup"}
    assert having(optimizers, lambda f: "decay_timescale" in f.takes) == {"sgdw", "muon", "adamw"}
    assert optimizers.entry("sgd").facts.takes - optimizers.entry("sgdw").facts.takes == {
        "lr_correction"
    }


@pytest.mark.parametrize("name", [n for n in optimizers.names() if n != "apex_lamb"])
def test_an_optimizer_is_what_it_says(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    built = build_optimizer(OptimConfig(name=name), model)
    assert isinstance(built, LayerwiseOptimizer) == optimizers.entry(name).facts.layerwise


def test_the_engines_facts_are_those_of_before() -> None:
    keys = {entry.name: set(entry.facts.keys) for entry in engines}
    assert keys == {
        "ddp": {"allreduce", "torus", "wire_dtype"},
        "fsdp": {"shard_ranks"},
        "deepspeed": {"zero_stage", "deepspeed_config"},
    }
    assert having(engines, lambda f: f.divides_model) == {"fsdp"}
    assert having(engines, lambda f: f.whole_parameters) == {"ddp"}
    assert having(engines, lambda f: f.own_gradients) == {"ddp"}
    assert having(engines, lambda f: f.keeps_gradients) == {"deepspeed"}
    assert having(engines, lambda f: f.makes_optimizers) == {"deepspeed"}


def test_the_other_facts_are_those_of_before() -> None:
    assert having(curves, lambda f: f.cycle is not None) == {"sgdr", "cyclical"}
    assert having(curves, lambda f: "cycle" in f.takes) == {"sgdr", "cyclical"}
    assert having(curves, lambda f: "milestones" in f.takes) == {"multistep"}
    assert having(curves, lambda f: "end" in f.takes) == {"poly", "cosine", "sgdr", "cyclical"}
    assert having(datasets, lambda f: f.image_files) == {"imagefolder"}
    assert tasks.entry("classification").facts.config is ClassificationConfig


def test_keys_that_may_differ_are_those_of_before() -> None:
    assert set(RANK_KEYS) == {
        *("run.dir", "run.name", "model.init_from", "data.root", "data.workers", "batch.micro"),
        "data.tokenizer",
        *("telemetry", "distributed.deepspeed_config", "checkpoint.resume"),
    }
    assert set(FREE_KEYS) == {
        *("probes", "evaluate", "run.dir", "run.name", "run.nproc", "run.target"),
        *("run.on_nonfinite", "data.root", "data.workers", "batch.micro"),
        *("telemetry", "distributed", "checkpoint"),
    }


def test_a_config_chooses_from_every_registry() -> None:
    names = {registry.key: name for registry, name in chosen(Config())}
    assert names == {
        "model.name": "digits_cnn",
        "data.name": "digits",
        "optim.name": "sgd",
        "norm.kind": "batch",
        "schedule.curve": "cosine",
        "task.name": "classification",
        "distributed.engine": "ddp",
    }


# --- nobody asks for names --------------------------------------------------------------------

# Comparisons with a word that is also a name, and why they stand.
ALLOWED = {
    (
        "nn/convert.py",
        "batch",
    ): "that file registers it: what takes batch norms away gives them back",
    ("schedule/batch_scaling.py", "linear"): "a rule of the rate as well as a model",
    ("study/convergence.py", "batch"): "a column of a table as well as a norm",
    **{
        ("study/quadratic.py", name): "the one run whose expectation is known"
        for name in ("quadratic", "linear", "regression", "sgd")
    },
    ("engine/deepspeed_config.py", "adagrad"): "a type in DeepSpeed's own file as well as a name",
}
NO_NAME = "none"  # of many keys a value, of few of them an entry's name


def compared_words(path: Path) -> set[str]:
    """Return the strings that a file compares something with, alone or as one of several."""
    sides = [
        side
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
    ]
    parts = [part for side in sides for part in getattr(side, "elts", [side])]
    return {str(part.value) for part in parts if isinstance(part, ast.Constant)}


def test_no_file_compares_with_the_name_of_an_entry() -> None:
    names = {entry.name for registry in REGISTRIES for entry in registry} - {NO_NAME}
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in compared_words(path) & names
    }
    assert found == set(ALLOWED), "ask the entry's facts"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("muon", "needs whole matrices"),
        ("sgdw", "keys of its own: optim.momentum, optim.nesterov"),
        ("topk", "ranks hold a ghost together: with norm.sync_ranks"),
        ("batch", "statistics of each forward pass"),
        ("fsdp", "ranks hold parts of the model"),
        ("deepspeed", "makes optimizers of its own, with optim.name=deepspeed"),
        ("cyclical", "schedule.cycle is a half one"),
        ("imagefolder", "samples are image files"),
        ("classification", "keys of its own: task.label_smoothing"),
    ],
)
def test_explain_says_the_facts(capsys: pytest.CaptureFixture[str], name: str, words: str) -> None:
    assert main(["explain", name]) == 0
    assert words in capsys.readouterr().out

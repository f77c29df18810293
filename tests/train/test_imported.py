"""Tasks and optimizers of a user's: they train, resume and are evaluated as ours are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.optim import OptimConfig, build_optimizer, optimizers
from largebatch.train.check import check
from largebatch.train.continuation import choose_directory, differences
from largebatch.train.keys import known_keys
from largebatch.train.parse import dump, flat, parse, read_config

TEXT = '''\
from __future__ import annotations

open({mark!r}, "a").write("imported ")
from dataclasses import dataclass

import torch

from largebatch.optim import OptimizerFacts
from largebatch.tasks import Classification, ClassificationConfig, TaskConfig


@dataclass
class SharpConfig(TaskConfig):
    sharpness: float = 1.0
    words: list[str] | None = None

    def check(self):
        if self.sharpness <= 0:
            raise ValueError("flat")


class Sharp(Classification):
    config = SharpConfig

    def __init__(self, config: SharpConfig, num_classes: int) -> None:
        super().__init__(ClassificationConfig(), num_classes)
        self.sharpness = config.sharpness

    def _wide(self, logits):
        return super()._wide(logits) * self.sharpness


def plain(num_classes):
    return Classification(ClassificationConfig(), num_classes)


class Wrong(Classification):
    config = 3


@dataclass
class NoDefault(TaskConfig):
    size: int = None
    other: "nothing of the kind" = 3


class Untyped(Classification):
    config = NoDefault


class Sign(torch.optim.Optimizer):
    """Sign of the momentum; looks at its parameters before torch does."""

    def __init__(self, params, lr, beta=0.9, weight_decay=0.0):
        assert all(isinstance(p, torch.Tensor) for group in params for p in group["params"])
        super().__init__(params, dict(lr=lr, beta=beta, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                moment = self.state[p].setdefault("moment", torch.zeros_like(p))
                moment.lerp_(p.grad, 1 - group["beta"])
                p.sub_(group["lr"] * (moment.sign() + group["weight_decay"] * p))


class Hasty(Sign):
    facts = OptimizerFacts(frozenset({{"momentum"}}), whole_matrices=True)

    def __init__(self, params, lr, momentum):
        super().__init__(params, lr, momentum)


class Misspelt(Sign):
    facts = OptimizerFacts(frozenset({{"momentun"}}))


class NoRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {{}})


class Asks(Sign):
    def step(self, closure):
        pass


class Forgets(Sign):
    def load_state_dict(self, state_dict):
        raise KeyError("moment")


def nadam(config, groups):
    return torch.optim.NAdam(groups, lr=config.lr, momentum_decay=config.options["decay"])


def one_argument(config):
    return None


def nothing(config, groups):
    return 3


class Thing:
    pass
'''
SHARP = ("--task.name=own:Sharp", "--task.sharpness=1.5")
SIGN = ("--optim.name=own:Sign", "--optim.options.beta=0.7", "--optim.lr=1e-3",
        "--optim.weight_decay=0.01")  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(TEXT.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own", None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


# --- end to end -----------------------------------------------------------------------------


def test_they_train_resume_and_are_evaluated(folder, train, capsys):
    options = ("--schedule.length=2ep", *SHARP, *SIGN)
    whole = train("whole", *options)
    assert whole.lines("val")[-1]["loss"] < whole.lines("val")[0]["loss"]
    first = sorted((whole.directory / "checkpoints").iterdir())[0]
    resumed = train("resumed", *options, f"--checkpoint.resume={first}")
    assert "branching off at" in resumed.output
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    again = ("train", f"--run.dir={whole.directory}", *options)
    assert main([*again]) == 0 and "this run is finished" in capsys.readouterr().out
    assert "task.sharpness=2.0" in refused(capsys, *again, "--task.sharpness=2")

    (folder / "mark").unlink()
    line = refused(capsys, "eval", str(whole.directory))
    assert "='own:" in line and "--allow-imports" in line
    assert not (folder / "mark").exists()
    assert main(["eval", str(whole.directory), "--allow-imports"]) == 0
    assert f"loss {whole.lines('val')[-1]['loss']:.6g}" in capsys.readouterr().out


@pytest.mark.slow
def test_on_two_ranks(folder, train):
    done = train("two", "--schedule.length=1ep", *SHARP, "--optim.name=own:nadam",
                 "--optim.options.decay=0.01", "--run.target_top1=0.99", nproc=2)  # fmt: skip
    assert done.lines("val")
    remark = "largebatch: run.target_top1 is read as run.target={top1: 0.99}\n"
    assert done.output.count(remark) == 1  # not once a rank


@pytest.mark.parametrize("name", ["--task.name=own:Sharp", "--optim.name=own:Sign"])
def test_a_run_of_somebodys_imports_nothing(folder, capsys, name):
    config = parse([name])
    run = folder / "runs" / "digits_cnn-digits-20260101-000000"
    (run / "checkpoints" / "samples-000000000008").mkdir(parents=True)
    (run / "config.yaml").write_text(dump(config))
    sys.modules.pop("own", None)
    (folder / "mark").unlink(missing_ok=True)
    line = refused(capsys, "eval", str(run))
    assert "own:" in line and "--allow-imports" in line
    choose_directory(parse([]))  # what a resume looks for
    assert not (folder / "mark").exists()


# --- the task's own keys --------------------------------------------------------------------


def test_the_section_has_the_keys_of_its_task(folder, capsys):
    config = parse([*reversed(SHARP), "--task.words=[a, b]"])
    assert (config.task.name, config.task.sharpness, config.task.words) == (
        "own:Sharp", 1.5, ["a", "b"])  # fmt: skip
    assert {key for key in known_keys(type(config.task)) if key.startswith("task.")} == {
        "task.name", "task.sharpness", "task.words"}  # fmt: skip
    check(config)
    assert parse(["--task.name=own:plain"]).task.name == "own:plain"
    assert flat(parse([]))["task.label_smoothing"] == 0.0


@pytest.mark.parametrize("imports", [True, False])
def test_it_is_written_and_read_back(folder, imports):
    config = parse([*SHARP, "--task.words=[a]"])
    (folder / "c.yaml").write_text(dump(config))
    assert yaml.safe_load(dump(config))["task"] == {
        "name": "own:Sharp", "sharpness": 1.5, "words": ["a"]}  # fmt: skip
    saved = read_config(folder / "c.yaml", imports=imports)
    assert dump(saved) == dump(config)
    assert differences(config, saved) == {}
    other = parse([*SHARP, "--task.words=[b]"])
    assert differences(other, saved) == {"task.words": (["b"], ["a"])}
    assert differences(config, parse([]))["task.name"] == ("own:Sharp", "classification")
    assert "task.name" in differences(parse([]), saved)


def test_a_file_names_the_task_and_an_option_its_key(folder):
    (folder / "c.yaml").write_text("task: {sharpness: 3, name: 'own:Sharp'}\n")
    assert parse(["--task.sharpness=4", "--config=c.yaml"]).task.sharpness == 3
    assert parse(["--config=c.yaml", "--task.sharpness=4"]).task.sharpness == 4
    with pytest.raises(UserError, match=r"'task.sharpness'.*task has name, label_smoothing"):
        parse(["--config=c.yaml", "--task.name=classification"])


@pytest.mark.parametrize("option", ["--print_config", "--help"])
def test_the_printed_config_is_of_the_chosen_task(folder, capsys, option):
    with pytest.raises(SystemExit):
        parse([option, "--task.name=own:Sharp"])
    text = capsys.readouterr().out
    assert "sharpness" in text and "label_smoothing" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["own:Sharp", "--task.sharpnes=2"],
            ["'task.sharpnes'", "task has name, sharpness, words"],
        ),
        (["own:Sharp", "--task.label_smoothing=0.1"], ["task has name, sharpness"]),
        (["own:plain", "--task.label_smoothing=0.1"], ["task has name"]),
        (["own:Sharp", "--task.sharpness=x"], ["task.sharpness=x", "a number"]),
        (["own:Sharp", "--task.sharpness=null"], ["task.sharpness=None", "a number"]),
        (["own:Sharp", "--task.sharpness=0"], ["own:Sharp", "ValueError: flat"]),
        (["own:Wrong"], ["own:Wrong", "no dataclass derived from"]),
        (["own:Untyped"], ["own:Untyped", "NoDefault", "a type and a default"]),
        (["own:Thing"], ["own:Thing", "not a largebatch.tasks.Task"]),
        (["own:absent"], ["own.py has no callable 'absent'"]),
        (["no_such_module:f"], ["no module 'no_such_module'"]),
    ],
)
def test_tasks_that_are_none(folder, capsys, arguments, words):
    line = refused(capsys, "train", f"--task.name={arguments[0]}", *arguments[1:])
    assert "task" in line and all(word in line for word in words), line


# --- optimizers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["own:Sign", "--optim.options.bet=1"], ["optim.options.bet=1", "takes beta"]),
        (["own:Sign", "--optim.options.lr=1"], ["set optim.lr instead"]),
        (["own:Sign", "--optim.options.beta=x"], ["optim.name='own:Sign'", "TypeError"]),
        (["own:Sign", "--optim.momentum=0.3"], ["optim.momentum=0.3", "optim.options sets beta"]),
        (["own:Hasty", "--optim.weight_decay=0.1"], ["no argument weight_decay"]),
        (["own:Hasty", "--distributed.engine=fsdp"], ["own:Hasty: needs whole matrices", "ddp"]),
        (["own:Misspelt"], ["optim.momentun, which is no key"]),
        (["own:NoRate"], ["no argument lr"]),
        (["own:Asks"], ["a step of it raised TypeError", "closure"]),
        (["own:Forgets"], ["its own state_dict raised KeyError", "own.py"]),
        (["own:Thing"], ["a class that is no torch.optim.Optimizer"]),
        (["own:one_argument"], ["cannot be called with"]),
        (["own:nothing"], ["returned a int"]),
        (["own:nadam"], ["KeyError: 'decay'", "own.py"]),
        (["shutil:rmtree"], ["Python's own"]),
        (["torch.optim:LBFGS"], ["closure"]),
        (["sdg"], ["did you mean 'sgd'", "package.module:callable"]),
    ],
)
def test_optimizers_that_are_none(folder, capsys, arguments, words):
    line = refused(capsys, "train", f"--optim.name={arguments[0]}", *arguments[1:])
    assert "optim." in line and all(word in line for word in words), line


def test_what_an_optimizer_is_given(folder):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    built = build_optimizer(
        OptimConfig("own:Sign", lr=0.3, weight_decay=0.1, options={"beta": 0.5}), model
    )
    assert [group["name"] for group in built.param_groups] == ["decay", "no_decay"]
    assert [group["weight_decay"] for group in built.param_groups] == [0.1, 0.0]
    assert all((group["lr"], group["beta"]) == (0.3, 0.5) for group in built.param_groups)
    hasty = build_optimizer(OptimConfig("own:Hasty", momentum=0.25), model)
    assert hasty.param_groups[0]["beta"] == 0.25
    assert optimizers.entry("own:Hasty").facts.whole_matrices


def test_state_of_another_type_than_the_parameters_comes_back_to_the_bit(folder):
    """torch casts it on loading, where an optimizer does nothing about it."""
    model = torch.nn.Linear(2, 2)
    built = build_optimizer(OptimConfig("own:Sign"), model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    built.step()
    for state in built.state.values():
        state["moment"] = state["moment"].double() / 3
    before = [state["moment"].clone() for state in built.state.values()]
    built.load_state_dict(built.state_dict())
    after = [state["moment"] for state in built.state.values()]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, after, strict=True))


# --- aliases --------------------------------------------------------------------------------

ALIASES = [("run.target_top1", "0.9"), ("batch.plan", "[{image_size: 16, size: 8}]")]


@pytest.mark.parametrize(("key", "text"), ALIASES)
@pytest.mark.parametrize("way", ["a file", "an option"])
def test_aliases_are_read_as_what_they_stand_for(folder, capsys, key, text, way):
    section, name = key.split(".")
    (folder / "c.yaml").write_text(f"{section}: {{{name}: {text}}}\n")
    config = parse(["--config=c.yaml"] if way == "a file" else [f"--{key}={text}"])
    said = capsys.readouterr()
    assert said.out == ""
    if name == "plan":
        assert [phase.extent for phase in config.batch.plan] == [16] and said.err == ""
        assert "image_size: 16" not in dump(config)
    else:
        assert config.run.target == {"top1": 0.9} and "target_top1" not in dump(config)
        assert said.err == "largebatch: run.target_top1 is read as run.target={top1: 0.9}\n"


def test_reading_a_run_says_nothing(folder, capsys):
    (folder / "c.yaml").write_text("run: {target_top1: 0.9}\n")
    assert read_config(Path("c.yaml")).run.target == {"top1": 0.9}
    assert capsys.readouterr() == ("", "")


def test_an_alias_overrides_what_a_file_says(folder):
    (folder / "c.yaml").write_text("run: {target: {loss: 0.3}}\n")
    assert parse(["--config=c.yaml", "--run.target_top1=0.9"]).run.target == {"top1": 0.9}
    assert parse(["--config=c.yaml", "--run.target_top1=null"]).run.target is None


def test_the_printed_config_holds_no_remark(folder, capsys):
    with pytest.raises(SystemExit):
        parse(["--run.target_top1=0.9", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["run"]["target"] == {"top1": 0.9}


@pytest.mark.parametrize(
    ("tree", "arguments", "names"),
    [
        ("run: {target_top1: 0.9, target: {loss: 1}}", [], ("run.target", "run.target_top1")),
        ("", ["--run.target={loss: 1}", "--run.target_top1=0.9"],
         ("--run.target", "--run.target_top1")),
        ("", ["--run.target_top1=0.9", "--run.target.loss=1"],
         ("--run.target", "--run.target_top1")),
        ("batch: {plan: [{size: 8}, {image_size: 8, extent: 8}]}", [],
         ("batch.plan[1].extent", "batch.plan[1].image_size")),
        ("", ["--batch.plan=[{image_size: 8, extent: 8}]"],
         ("batch.plan[0].extent", "batch.plan[0].image_size")),
    ],
)  # fmt: skip
def test_both_names_at_once_are_refused(folder, tree, arguments, names):
    (folder / "c.yaml").write_text(tree)
    with pytest.raises(UserError) as found:
        parse(["--config=c.yaml", *arguments])
    words = str(found.value)
    assert set(words.partition(" are two names")[0].split(" and ")) == set(names), words

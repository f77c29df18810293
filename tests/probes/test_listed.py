"""Lists of things by name in a config: what is wrong with one is said in a line that names it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from largebatch._errors import UserError
from largebatch._registry import Facts, Registry
from largebatch.probes import Instrument, build_probes, check_list, make
from largebatch.schedule import Clock, Duration

things: Registry = Registry("things", lambda _: Facts(), importable=True)


@things.register("plain", "takes the model and a number")
def plain(model, factor=2, *, needed):
    return model, factor, needed


@things.register("any", "takes whatever there is")
def any_options(**options):
    return options


@things.register("none", "takes nothing")
def none():
    raise UserError("not today")


OFFERS = ("model", "every")


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (["plain"], "things[0]='plain': a mapping such as {name: NAME, every: 1ep}"),
        ([{"every": "1ep"}], "things[0]={'every': '1ep'}: a mapping such as"),
        ([{"name": 3}], "things[0]={'name': 3}: a mapping such as"),
        ([{"name": "any"}, {"name": "plaim"}], "things[1].name='plaim': choose from plain, any"),
        ([{"name": "any", "every": 5}], "things[0].every=5: duration 5"),
        ([{"name": "any", "every": "0st"}], "things[0].every=0st: more than 0"),
        ([{"name": "any"}, {"name": "any"}], "things[1].name='any': is named twice"),
        ([{"name": "plain"}], "things[0].needed is missing: plain needs it"),
        ([{"name": "plain", "needed": 1, "facto": 2}],
         "things[0].facto: plain has no such option; there are factor, needed (did you mean"),
        ([{"name": "plain", "needed": 1, "model": 2}], "things[0].model: the run gives it"),
        ([{"name": "none", "factor": 1}], "things[0].factor: none has no such option; it has none"),
        ([{"name": "no_such_module:f"}], "things[0].name='no_such_module:f': no module"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_item(items, said):
    with pytest.raises(UserError) as error:
        check_list(things, items, OFFERS)
    assert str(error.value).startswith(said), error.value
    assert "\n" not in str(error.value)


def test_a_factory_gets_its_options_and_the_offers_that_it_names():
    items = [{"name": "plain", "needed": 1, "every": "3st"}, {"name": "any", "depth": 4}]
    first, second = check_list(things, items, OFFERS)
    assert (first.every, second.every) == (Duration(3, "st"), None)
    assert make(things, first, {"model": "m", "every": None}) == ("m", 2, 1)
    assert make(things, second, {"model": "m", "every": None}) == {"depth": 4}
    (third,) = check_list(things, [{"name": "none"}], OFFERS)
    with pytest.raises(UserError, match=r"things\[0\]: not today"):
        make(things, third, {})


MODULE = """
from largebatch.probes import Instrument

class Steps(Instrument):
    def __init__(self, model, start=0):
        self.start = start

    def measure(self, at):
        return {}

def wrong(model):
    return 3

def broken(model):
    raise KeyError("x")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_probe.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_probe", None)


def test_a_probe_is_due_as_its_item_says(folder):
    clock = Clock(100, 1000)
    items = [{"name": "own_probe:Steps", "every": "5st", "start": 3}]
    (probe,) = build_probes(items, {"model": torch.nn.Linear(1, 1)}, clock)
    assert isinstance(probe, Instrument) and probe.start == 3
    assert probe.name == "own_probe:Steps"
    assert [number for number in range(1, 11) if probe.due(None, number)] == [5, 10]
    (always,) = build_probes([{"name": "own_probe:Steps"}], {"model": None}, clock)
    assert always.due(None, 1)
    for name, said in (("wrong", "returned a int, not"), ("broken", "to make it raised KeyError")):
        with pytest.raises(UserError, match=said):
            build_probes([{"name": f"own_probe:{name}"}], {"model": None}, clock)

"""`plan --constants`: a measured cost model is one that some machine could have, or refused."""

from __future__ import annotations

import copy
import json

import pytest

from largebatch.cli import main

GOOD = {
    "fast": {"latency": 1e-6, "seconds_per_byte": 1e-11},
    "slow": {"latency": 1e-5, "seconds_per_byte": 1e-10},
    "reduction": 0.0,
    "launch": 1e-5,
    "chunk": None,
}
SMALL = ["--model=digits_cnn", "--image=1x8x8", "--classes=10", "--nodes=2", "--per-node=2"]
NAN, INF = float("nan"), float("inf")


def changed(*places, value):
    constants = copy.deepcopy(GOOD)
    inner = constants
    for place in places[:-1]:
        inner = inner[place]
    if value is KeyError:
        del inner[places[-1]]
    else:
        inner[places[-1]] = value
    return json.dumps(constants)


CASES = [
    *(
        (changed(link, key, value=value), [f"{link}.{key}"])
        for link in ("fast", "slow")
        for key in ("latency", "seconds_per_byte")
        for value in (-1e-6, "12", True, None, [1], 1e4, KeyError)
    ),
    *((changed(link, "seconds_per_byte", value=0), [f"{link}.seconds_per_byte=0"])
      for link in ("fast", "slow")),
    *((changed(key, value=value), [key]) for key in ("reduction", "launch", "chunk")
      for value in (-1, "x", True, 1e4)),
    (changed("launch", value=None), ["launch"]),
    (changed("slow", "latency", value=NAN), ["NaN"]),
    (changed("fast", "seconds_per_byte", value=INF), ["Infinity"]),
    (changed("chunk", value=-INF), ["-Infinity"]),
    (json.dumps(GOOD).replace("1e-10", "1e999"), ["slow.seconds_per_byte"]),
    (changed("fast", value=KeyError), ["fast"]),
    (changed("slow", value=3), ["slow"]),
    (changed("fast", "bandwidth", value=1e9), ["fast.bandwidth"]),
    (changed("alpha", value=1), ["alpha"]),
    ("[]", ["fast"]), ("3", ["fast"]), ('{"model": null}', ["fast"]), ("{}", ["fast"]),
    ("", ["malformed"]), ("not json", ["malformed"]), ("[" * 100_000, ["nested"]),
    ('{"fast": {}, "fast": {}}', ["fast", "twice"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), CASES, ids=range(len(CASES)))
def test_constants_of_no_machine(capsys, tmp_path, text, words):
    path = tmp_path / "c.json"
    path.write_text(text)
    assert main(["plan", *SMALL, f"--constants={path}"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "Traceback" not in line
    assert str(path) in line and all(word in line for word in words), line


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps({"model": GOOD, "timings": []}),
        json.dumps({key: GOOD[key] for key in ("fast", "slow")}),
        changed("fast", "latency", value=0),
        changed("chunk", value=0),
        changed("slow", "seconds_per_byte", value=1e3),
        changed("slow", "seconds_per_byte", value=1e-18),
    ],
)
def test_the_ends_of_what_is_allowed(capsys, tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    assert main(["plan", *SMALL, f"--constants={path}"]) == 0

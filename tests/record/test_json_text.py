"""JSON that we write is JSON."""

import ast
import json
from pathlib import Path

import pytest

import largebatch
from largebatch.doctor import Check, to_json
from largebatch.record import (
    BenchmarkRecord,
    RunDirectory,
    is_number,
    json_text,
    parse_json,
    read_record,
    write_record,
)

NAN, INF = float("nan"), float("inf")


def strict(text):
    """Read JSON as the standard has it."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": NAN, "b": [INF, 1.5, {"c": -INF}], "d": (NAN, "NaN")},
         {"a": None, "b": [None, 1.5, {"c": None}], "d": [None, "NaN"]}),
        ({NAN: 1}, {"nan": 1}),
        ([0.1 + 0.2, 10**30, True, None, "\ud800"], [0.1 + 0.2, 10**30, True, None, "\ud800"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indented", [False, True])
def test_what_is_written_is_json(value, expected, indented):
    assert strict(json_text(value, indented)) == expected


def test_figures_that_are_no_numbers_are_written_as_null(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_summary({"loss": NAN, "top1": 0.5, "target": {"seconds": INF}})
    assert strict(run.summary.read_text()) == {
        "loss": None,
        "top1": 0.5,
        "target": {"seconds": None},
    }
    path = tmp_path / "record.json"
    write_record(path, BenchmarkRecord("a", "b", [{"ratio": INF}], {"cores": NAN}))
    assert strict(path.read_text())["rows"] == [{"ratio": None}]
    assert read_record(path).environment == {"cores": None}
    assert strict(to_json([Check("x", "ok", NAN, "")]))["checks"][0]["value"] is None


def test_what_older_runs_wrote_can_be_read():
    assert parse_json(b'{"loss": NaN, "a": [Infinity, -Infinity]}') == {
        "loss": None,
        "a": [None, None],
    }
    assert parse_json("[Infinity]", exact=True) == [INF]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[1", "", "\x00", b"\xff\xfe["])
def test_what_is_none_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"deep|Expecting|decode"):
        parse_json(text)


def test_numbers_that_a_float_can_hold():
    values = [0, 1.5, -(10**300), 1e308]
    assert all(map(is_number, values))
    others = [NAN, INF, -INF, 10**400, True, "1", None, [1]]
    assert not any(map(is_number, others))


# Messages between processes of ours, and values shown in a sentence.
MAY = {"distributed", "processes", "_ops", "engine/deepspeed_config.py", "record/json_text.py"}
WRITES = {"json.dump", "json.dumps", "json.JSONEncoder"}


def test_one_place_writes_json():
    package = Path(largebatch.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WRITES:
                found.add(str(path.relative_to(package)))
    outside = {name for name in found if name not in MAY and name.split("/")[0] not in MAY}
    assert not outside, f"json_text writes JSON: {sorted(outside)}"
    assert "record/json_text.py" in found

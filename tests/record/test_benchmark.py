"""The benchmark record."""

import json
import os
import socket

import pytest
import torch

import largebatch
from largebatch._cores import usable_cores
from largebatch._errors import UserError
from largebatch.record import BenchmarkRecord, environment, read_record, write_record


def test_round_trip(tmp_path):
    record = BenchmarkRecord(
        "loop", "samples / seconds", [{"loop": "ours", "samples_per_second": 1.5}]
    )
    write_record(tmp_path / "results" / "loop.json", record)
    assert read_record(tmp_path / "results" / "loop.json") == record


def test_environment_says_on_what_and_by_what():
    found = environment(["largebatch", "bench", "loop", "--json=/somewhere/private/loop.json"])
    assert found["torch"] == torch.__version__
    assert found["largebatch"] == largebatch.__version__
    assert found["cores"] == usable_cores()
    assert found["memory_gib"] > 0
    assert found["cpu"]
    assert found["command"] == "largebatch bench loop --json=loop.json"


def test_environment_names_no_machine():
    text = json.dumps(environment(["/private/bin/largebatch", "bench"]))
    assert socket.gethostname() not in text
    assert os.getcwd() not in text
    assert "/private" not in text


def test_refusals(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(UserError, match=r"No such file"):
        read_record(path)
    for text in ("{", '{"name": "loop"}', "[1]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"not a benchmark record"):
            read_record(path)
    with pytest.raises(UserError, match=r"cannot be written"):
        write_record(path / "below" / "record.json", BenchmarkRecord("a", "b", []))

"""``largebatch plan`` as a user meets it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest

from largebatch.cli import main
from largebatch.distributed.cost_model import CostModel, Link
from largebatch.record import read_record
from largebatch.simulate.methods import METHODS

SMALL = ["--model=digits_cnn", "--image=1x8x8", "--classes=10", "--nodes=2", "--per-node=4"]


def refused(capsys, *arguments):
    assert main(["plan", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.rstrip("\n")
    assert "\n" not in line and line.startswith("largebatch: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=resnet5"], ["resnet5", "did you mean 'resnet50'"]),
        (["--link=ib-hd"], ["--link ib-hd", "did you mean 'ib-hdr'"]),
        (["--local-link=nvlink"], ["--local-link nvlink", "nvlink-a100"]),
        (["--device=a10"], ["--device a10", "did you mean 'a100'"]),
        (["--device=v100"], ["--precision bf16", "v100 has fp32, fp16"]),
        (["--link=12.5,-1"], ["12.5,-1", "GB/s,microseconds"]),
        (["--link=0,1"], ["0,1", "above 0"]),
        (["--nodes=0"], ["--nodes 0", "from 1"]),
        (["--per-node=two"], ["--per-node", "two"]),
        (["--batch-per-rank=-4"], ["--batch-per-rank -4"]),
        (["--bucket-mb=big"], ["--bucket-mb big", "auto"]),
        (["--wire=int8"], ["--wire int8", "fp32, bf16, fp16"]),
        (["--image=224"], ["--image 224", "3x224x224"]),
        (["--images-per-second=nan"], ["--images-per-second nan"]),
        (["--images-per-second=1e9", *SMALL], ["cannot do more than"]),
        (["--constants=absent.json"], ["absent.json"]),
        (["--nods=4"], ["--nods=4", "no option"]),
        (["--json=/proc/none/x.json", *SMALL], ["/proc/none"]),
    ],
)
def test_mistakes_end_in_one_line(capsys, arguments, words):
    if "--json" in arguments[0]:
        assert main(["plan", *arguments]) == 2
        line = capsys.readouterr().err
    else:
        line = refused(capsys, *arguments)
    assert all(word in line for word in words)


def test_the_fastest_is_said_for_every_size_of_message(capsys):
    """Not by one crossing: the table's winner is what the sentence names for a bucket's size."""
    arguments = ["--nodes=64", "--per-node=8", "--model=resnet50", "--device=h100"]
    arguments += ["--link=ib-ndr", "--cards=8", "--batch-per-rank=128"]
    assert main(["plan", *arguments]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "274,877,906,944" not in printed
    assert (
        "largebatch today (distributed.allreduce=auto), by message: "
        "NCCL tree (LL); NCCL tree (LL128) from 256 KiB" in printed
    )
    assert "best grid for 25 MB: 16 x 32 (rows x columns), " in printed
    assert "rows over 4 hosts: largebatch does not run it" in printed


@pytest.mark.parametrize("batch", ["1000000", "1822"])
def test_a_batch_beyond_the_memory_is_refused(capsys, batch):
    line = refused(capsys, "--model=resnet50", f"--batch-per-rank={batch}")
    assert f"--batch-per-rank {batch}: needs " in line
    assert "of a100's 80; 1,821 samples fit" in line


def test_a_damaged_cost_model_is_named(capsys, tmp_path):
    path = tmp_path / "cost.json"
    path.write_text('{"fast": {"latency": 1e-5}}')
    assert "not a cost model" in refused(capsys, f"--constants={path}", *SMALL)


def test_table_record_and_measured_constants(capsys, tmp_path):
    constants, record = tmp_path / "cost.json", tmp_path / "plan.json"
    model = CostModel(Link(50e-6, 1 / 1.5e9), Link(100e-6, 1 / 25e6))
    constants.write_text(json.dumps({"model": asdict(model), "timings": []}))
    assert main(["plan", *SMALL, f"--constants={constants}", f"--json={record}"]) == 0
    printed = capsys.readouterr().out
    assert all(method.name in printed for method in METHODS)
    assert "a host's link 0.025 GB/s and 100 us" in printed
    assert re.search(r"bounds .* ms by FLOPs, .* ms by memory, .* ms by network", printed)
    rows = read_record(record).rows
    assert {row["method"] for row in rows} == {*(m.name for m in METHODS), "auto"}
    assert max(row["ranks"] for row in rows) == 4096
    asked = [r for r in rows if (r["nodes"], r["batch_per_rank"], r["method"]) == (2, 64, "auto")]
    assert len(asked) == 1
    line = next(line for line in printed.splitlines() if line.strip().startswith("auto"))
    assert f"{1e3 * asked[0]['step_seconds']:.2f}" in line or "against" in line


def test_explain_states_formulas_and_sources(capsys):
    assert main(["plan", "--explain"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "2(N-1) (a_r + S/N b_r)",
        "Mikami 2018",
        "weak scaling",
        "tuning.cc",
        "data sheet",
    ):
        assert words in printed


def test_the_page_is_one_file_with_the_figures_of_the_table(capsys, tmp_path):
    page = tmp_path / "plan.html"
    assert main(["plan", *SMALL, f"--plot={page}"]) == 0
    printed = capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    outside = {a for a in re.findall(r"https?://[^/\"' )]+", text) if "www.w3.org" not in a}
    assert outside == set()
    data = json.loads(re.search(r'id="largebatch-data">(.*?)</script>', text, re.S).group(1))
    assert set(data["along"]) == {"nodes", "batch"} and len(data["methods"]) == len(METHODS) + 1
    assert {event["stream"] for event in data["events"]} == {"compute", "communication"}
    flat = re.search(r"flat ring +([\d.]+)", printed).group(1)
    assert f">{flat}<" in text


def test_the_page_draws_without_a_word_on_the_console(browser, capsys, tmp_path):
    page = tmp_path / "plan.html"
    assert main(["plan", *SMALL, f"--plot={page}"]) == 0
    browser.get(page.as_uri())
    drawn = browser.execute_script(
        "return ['efficiency', 'step', 'batch', 'timeline'].map("
        "key => document.getElementById(`chart-${key}`).data.length)"
    )
    assert drawn[:3] == [len(METHODS) + 1, len(METHODS) + 2, len(METHODS) + 1]
    assert drawn[3] >= 4
    hide = "document.querySelector('[data-toggle=\"0\"]').click();"
    see = "return document.getElementById('chart-step').data[0].visible"
    assert browser.execute_script(hide + see) is False
    assert browser.get_log("browser") == []


def test_a_language_model_by_its_sizes(capsys):
    sizes = ["--model=gpt:layers=2,heads=2,width=32", "--context=64", "--vocabulary=100"]
    assert main(["plan", *sizes, "--nodes=2"]) == 0
    assert "gpt:layers=2,heads=2,width=32 on 2 x 8 a100" in capsys.readouterr().out
    assert "layers=two" in refused(capsys, "--model=gpt:layers=two", "--context=64")
    assert "model.depth" in refused(capsys, "--model=gpt:depth=2", "--context=64")
    assert "takes no text" in refused(capsys, "--context=64")
    assert "--context 0" in refused(capsys, "--model=gpt", "--context=0")

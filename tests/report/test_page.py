"""The page, read as text."""

import json
import re
from html.parser import HTMLParser

import pytest

from largebatch._errors import UserError
from largebatch.report import read_run, write_report
from largebatch.report.page import json_for_html, plotly_without_addresses


class Page(HTMLParser):
    """Collects what a browser would load, the data block and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.text, self.blocks, self._inside = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.addresses += [named[key] for key in ("src", "href", "data") if named.get(key)]
        self._inside = (tag, named.get("id")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.text.append(data)
        elif self._inside[1]:
            self.blocks[self._inside[1]] = data


def written(tmp_path, runs):
    write_report(runs, tmp_path / "out" / "report.html")
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_data_is_the_metrics(tmp_path, make_run):
    run = make_run()
    page = Page(written(tmp_path, [run]))
    data = json.loads(page.blocks["largebatch-data"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    series = data["runs"][0]["series"]
    for split, key in (("val", "top1"), ("val", "loss"), ("train", "loss"), ("train", "lr")):
        expected = [line for line in lines if line["split"] == split]
        assert series[split][key]["value"] == [line[key] for line in expected]
        assert series[split][key]["samples"] == [line["samples"] for line in expected]
        assert series[split][key]["step"] == [line["step"] for line in expected]
    distances = [line for line in lines if "weight_distance" in line]
    assert {line["split"] for line in distances} == {"train", "val"}
    assert series["train"]["weight_distance"]["step"] == [line["step"] for line in distances]
    assert "weight_distance" not in series["val"]
    assert [chart["key"] for chart in data["charts"]] == [
        "top1",
        "loss",
        "lr",
        "batch_size",
        "samples_per_second",
        "weight_norm",
        "weight_distance",
        "clip_factor",
    ]


def test_nothing_points_outside(tmp_path, make_run):
    text = written(tmp_path, [make_run()])
    assert set(Page(text).addresses) <= {"data:,"}
    hosts = set(re.findall(r"(?:https?|wss?|ftp):/+([^/\"'\s]+)", text))
    assert hosts <= {"www.w3.org"}
    assert not re.search(r"[\"'(]//[a-z]+\.[a-z]", text)
    assert "default-src 'none'" in text


def test_plotly_keeps_its_notice_and_the_names_of_xml():
    plotly = plotly_without_addresses()
    assert "Licensed under the MIT license" in plotly
    assert "http://www.w3.org/2000/svg" in plotly


def test_table_and_differences(tmp_path, make_run):
    runs = [make_run("small"), make_run("large", batch=1024, finished=False, model="f1")]
    text = " ".join("".join(Page(written(tmp_path, runs)).text).split())
    for cell in ("small", "large", "c_digits", "1,024", "5,123", "1 min 23 s", "unfinished"):
        assert cell in text
    top1 = json.loads((runs[0] / "summary.json").read_text())["top1"]
    assert f"{top1:.2%}" in text
    assert "What differs batch.size" not in text  # the header row lies between
    assert [key for key in ("batch.size", "model.name") if key in text] == [
        "batch.size",
        "model.name",
    ]
    assert "schedule.curve" not in text  # alike in both
    assert "run.dir" not in text
    assert "curve: cosine" in text  # but in the config


def test_a_plan_shows_its_batches(make_run):
    run = make_run()
    (run / "config.yaml").write_text("batch: {size: 64, plan: [{size: 32}, {}, {size: 4096}]}")
    assert read_run(run).row["batch"] == "32 → 64 → 4,096"


def test_other_figures_get_a_chart(tmp_path, make_run):
    run = make_run()
    with open(run / "metrics.jsonl", "a") as file:
        line = {"samples": 10**6, "step": 999, "epoch": 11, "split": "train", "gradient_norm": 2.5}
        file.write(json.dumps(line) + "\n")
    page = Page(written(tmp_path, [run]))
    assert json.loads(page.blocks["largebatch-data"])["charts"][-1]["title"] == "Gradient norm"


def test_batch_size_is_drawn_without_short_last_steps(make_run):
    sizes = read_run(make_run(batch=128)).series["train"]["batch_size"]["value"]
    assert set(sizes) == {128}


def test_a_diverged_run_can_be_shown(tmp_path, make_run):
    run = make_run()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"loss": 0\.1\d*', '"loss": null', text))
    loss = read_run(run).series["train"]["loss"]
    assert 0 < len(loss["value"]) < len(read_run(run).series["train"]["lr"]["value"])
    assert "NaN" not in Page(written(tmp_path, [run])).blocks["largebatch-data"]


def test_names_cannot_write_html(tmp_path, make_run):
    run = make_run("<img src=x onerror=alert(1)>", model="</script><b>")
    text = written(tmp_path, [run, run])
    assert "<img" not in text
    page = Page(text)
    assert "x" not in page.addresses
    assert json.loads(page.blocks["largebatch-data"])["runs"][1]["name"].endswith("(2)")


def test_json_cannot_end_its_element():
    text = json_for_html({"name": "</script><!--&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": "</script><!--&"}


def test_refusals(tmp_path, make_run):
    run = make_run()
    with pytest.raises(UserError, match=r"at least one"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"nowhere: no such run"):
        write_report([run, tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"cannot be written"):
        write_report([run], run / "config.yaml" / "report.html")
    for name, content, match in (
        ("config.yaml", "a: [", r"config\.yaml: damaged"),
        ("config.yaml", "- a", r"config\.yaml: damaged"),
        ("summary.json", "{", r"summary\.json: damaged"),
        ("metrics.jsonl", '{"torn', r"no whole line"),
        ("metrics.jsonl", "", r"no whole line"),
        ("metrics.jsonl", "junk\n" * 3, r"no whole line yet.* line 1, 2, 3, of 3"),
    ):
        whole = (run / name).read_text()
        (run / name).write_text(content)
        with pytest.raises(UserError, match=match):
            write_report([run], tmp_path / "report.html")
        (run / name).write_text(whole)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: No such file"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_steps_and_hardware_have_their_charts(tmp_path, make_run):
    run = make_run(epochs=300, samples=6000, ranks=2)
    data = json.loads(Page(written(tmp_path, [run])).blocks["largebatch-data"])
    ids = [chart["id"] for chart in data["charts"]]
    assert ids.count("step_seconds") == 1
    assert "data_seconds" not in ids  # it is stacked with the others
    assert ids[-4:] == [
        "rank-gpu_memory_bytes",
        "rank-gpu_power_watts",
        "rank-host_cpu_utilization",
        "rank-data_seconds",
    ]
    # Layers of a stack are thinned together, or they would not add up.
    phases = ("compute", "communication", "optimizer", "data")
    layers = [data["runs"][0]["series"]["train"][f"{name}_seconds"] for name in phases]
    assert 1000 < len(layers[0]["step"]) <= 2002
    assert all(layer["step"] == layers[0]["step"] for layer in layers)
    power = data["runs"][0]["hardware"]["gpu_power_watts"]
    assert sorted(power) == ["rank 0", "rank 1"]
    assert all(500 <= value <= 551 for value in power["rank 1"]["value"])
    # Several runs: a chart for each phase instead of a stack.
    two = json.loads(
        Page(written(tmp_path, [run, make_run("other", ranks=1)])).blocks["largebatch-data"]
    )
    assert {"data_seconds", "compute_seconds"} < {chart["id"] for chart in two["charts"]}
    assert "step_seconds" not in {chart["id"] for chart in two["charts"]}


def test_of_many_ranks_the_extremes_and_the_mean_are_drawn(make_run):
    hardware = read_run(make_run(epochs=2, ranks=12)).hardware["gpu_memory_bytes"]
    assert {name: set(series["value"]) for name, series in hardware.items()} == {
        "lowest": {50e9},
        "mean": {55.5e9},
        "highest": {61e9},
    }


def blocks(tmp_path, runs):
    """Return the page's data and its text in one line."""
    page = Page(written(tmp_path, runs))
    return json.loads(page.blocks["largebatch-data"]), " ".join("".join(page.text).split())


def columns_of(data, *names):
    return [[run["figures"].get(name) for name in names] for run in data["runs"]]


def test_a_language_run_is_judged_by_its_perplexity(tmp_path, make_language_run):
    run = make_language_run()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["perplexity"] for line in lines if line["split"] == "val"]
    assert min(values) < values[-1]
    data, text = blocks(tmp_path, [run])
    figures = data["runs"][0]["figures"]
    assert figures["perplexity"] == f"{values[-1]:.4g}"
    assert figures["best perplexity"] == f"{min(values):.4g}"
    assert list(figures)[4:7] == ["perplexity", "best perplexity", "loss"]
    assert "top-1" not in figures and "has no" not in text
    charts = {chart["key"]: chart for chart in data["charts"]}
    main = [key for key, chart in charts.items() if not chart["group"]]
    assert main[:4] == ["perplexity", "loss", "token_accuracy", "lr"]
    units = {key: charts[key]["unit"] for key in main[:3]}
    assert units == {"perplexity": "number", "loss": "number", "token_accuracy": "percent"}
    assert charts["perplexity"]["log_choice"] and not charts["token_accuracy"]["log_choice"]


def test_further_figures_stand_by_prefix(tmp_path, make_language_run):
    data, text = blocks(tmp_path, [make_language_run()])
    further = {chart["key"]: chart for chart in data["charts"] if chart["group"]}
    assert {key: chart["group"] for key, chart in further.items()} == {
        "hessian_top": "hessian",
        "hessian_trace": "hessian",
        "ema_loss": "ema",
        "ema_perplexity": "ema",
        "ema_token_accuracy": "ema",
        "noise_scale": "others",
        "knn_top1": "others",
    }
    percent = [key for key, chart in further.items() if chart["unit"] == "percent"]
    assert percent == ["ema_token_accuracy", "knn_top1"]
    assert further["ema_perplexity"]["better"] == "lower"
    assert further["noise_scale"]["better"] == ""
    assert "Further figures hessian Hessian top Hessian trace ema Ema loss" in text
    _, text = blocks(tmp_path, [make_language_run("bare", probes=False)])
    assert "Further figures" not in text


def test_a_noise_scale_stands_beside_the_batch(tmp_path, make_noisy_run):
    run = make_noisy_run(steps=8000)
    data, text = blocks(tmp_path, [run])
    charts = {chart["key"]: chart for chart in data["charts"]}
    chart = charts["noise_scale"]
    assert chart["group"] == "" and chart["beside"] == ["batch_size", "batch size"]
    further = [key for key, each in charts.items() if each["group"]]
    assert "noise_groups" in further and "noise_trace" in further
    assert not {"noise_scale_low", "noise_scale_high"} & charts.keys()
    series = data["runs"][0]["series"]["train"]
    low, value, high = (series[f"noise_scale{end}"] for end in ("_low", "", "_high"))
    assert value["step"] == high["step"]
    assert low["step"] == [*range(20, 2001, 20), *value["step"]]
    assert "Noise scale by layer" in text
    noise = data["runs"][0]["noise"]
    assert noise["names"] == ["0.weight", "0.bias"]
    assert noise["noise"][0][0] > 500 and noise["noise"][1] == [None] * len(noise["step"])


def test_runs_of_different_tasks_are_told_what_they_lack(tmp_path, make_run, make_language_run):
    runs = [make_run(), make_language_run()]
    data, text = blocks(tmp_path, runs)
    top1 = [json.loads(line).get("top1") for line in (runs[0] / "metrics.jsonl").open()]
    rows = columns_of(data, "top-1", "best top-1", "perplexity", "best perplexity")
    assert rows[0][0] == f"{top1[-1]:.2%}" and rows[0][2:] == ["–", "–"]
    assert rows[1][:2] == ["–", "–"] and "–" not in rows[1][2:]
    assert "digits has no perplexity; words has no top-1." in text
    assert [chart["key"] for chart in data["charts"]][:4] == [
        "top1",
        "perplexity",
        "loss",
        "token_accuracy",
    ]


def test_a_run_from_before_shows_its_last_and_goes_by_top1_or_the_loss(tmp_path, make_run):
    run = make_run()
    data, _ = blocks(tmp_path, [run])
    assert list(data["runs"][0]["figures"])[4:7] == ["top-1", "loss", "samples/s"]
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r', "top1": [-\d.e]+', "", text))
    data, _ = blocks(tmp_path, [run])
    assert list(data["runs"][0]["figures"])[4:6] == ["loss", "samples/s"]
    assert data["charts"][0]["key"] == "loss"


def test_percent_where_all_runs_read_it_so(tmp_path, make_run):
    runs = [make_run("one"), make_run("two")]
    headline = {"name": "top1", "better": "lower", "percent": False}
    (runs[1] / "task.json").write_text(json.dumps({"headline": headline}))
    data, _ = blocks(tmp_path, runs)
    assert data["charts"][0]["unit"] == "number"
    (one, _), (two, best) = columns_of(data, "top-1", "best top-1")
    assert one.endswith("%") and not two.endswith("%")
    lines = [json.loads(line) for line in (runs[1] / "metrics.jsonl").open()]
    assert best == f"{min(line['top1'] for line in lines if line['split'] == 'val'):.4g}"

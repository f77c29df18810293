"""The page in headless Chromium, opened as a file."""

import json

import pytest
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.support.ui import WebDriverWait

from largebatch.report import write_report


def requested(browser):
    """Return every address asked for since the last call, as the network layer saw it.

    But for Chromium's own pages: its new tab may still be loading when ours is opened.
    """
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and not event["params"]["request"]["url"].startswith(("chrome://", "chrome-untrusted://"))
    ]


def opened(browser, tmp_path, runs):
    """Write and open a report; fail on any console message or request but for the page itself."""
    page = tmp_path / "report.html"
    write_report(runs, page)
    browser.get_log("browser")
    requested(browser)
    browser.get(page.as_uri())
    return page


def clean(browser, page):
    """Assert that the console stayed silent and the network unused."""
    assert browser.get_log("browser") == []
    outside = [url for url in requested(browser) if not url.startswith(("data:", "blob:"))]
    assert outside == [page.as_uri()]
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []


def drawn(browser, key):
    """Return the traces that plotly has drawn in a chart."""
    return browser.execute_script(
        f"return document.getElementById('chart-{key}').data.map(trace => "
        "({x: Array.from(trace.x), y: Array.from(trace.y), name: trace.name, "
        "visible: trace.visible}))"
    )


def lines_of(run, split, key):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] in split and key in line]


def vertical_range(browser, key):
    return browser.execute_script(
        f"return document.getElementById('chart-{key}').layout.yaxis.range"
    )


def press(browser, selector):
    browser.execute_script(f"document.querySelector('{selector}').click()")


def test_figures_are_those_of_the_metrics(browser, tmp_path, make_run):
    run = make_run()
    page = opened(browser, tmp_path, [run])
    for key in ("top1", "loss"):
        train, validation = drawn(browser, key)
        expected = lines_of(run, "val", key)
        assert validation["name"] == "val"
        assert validation["y"] == [line[key] for line in expected]
        assert validation["x"] == [line["epoch"] for line in expected]
        assert train["y"] == [line[key] for line in lines_of(run, "train", key)]
    for key in ("lr", "samples_per_second", "weight_norm", "clip_factor"):
        (trace,) = drawn(browser, key)
        assert trace["y"] == [line[key] for line in lines_of(run, ("train", "val"), key)]
    (distance,) = drawn(browser, "weight_distance")
    expected = lines_of(run, ("train", "val"), "weight_distance")
    assert distance["x"] == [line["step"] for line in expected]
    assert distance["y"] == [line["weight_distance"] for line in expected]
    axis = "return document.getElementById('chart-weight_distance').layout.xaxis.type"
    assert browser.execute_script(axis) == "log"
    assert browser.execute_script("return document.querySelectorAll('.main-svg').length") >= 8
    for key in ("lr", "batch_size", "weight_norm", "weight_distance", "clip_factor"):
        low, high = vertical_range(browser, key)
        values = [value for trace in drawn(browser, key) for value in trace["y"]]
        assert low <= min(values) <= max(values) <= high
    low, high = vertical_range(browser, "top1")
    assert low < lines_of(run, "val", "top1")[-1]["top1"] < high
    clean(browser, page)


def test_axes_follow_the_buttons(browser, tmp_path, make_run):
    run = make_run()
    page = opened(browser, tmp_path, [run])
    for key in ("samples", "step", "epoch"):
        press(browser, f'[data-x="{key}"]')
        expected = [line[key] for line in lines_of(run, "val", "top1")]
        assert drawn(browser, "top1")[1]["x"] == expected
        pressed = browser.execute_script(
            "return [...document.querySelectorAll('[data-x][aria-pressed=true]')]"
            ".map(button => button.dataset.x)"
        )
        assert pressed == [key]
    press(browser, '[data-log="1"]')
    kind = "return document.getElementById('chart-{}').layout.yaxis.type"
    assert browser.execute_script(kind.format("loss")) == "log"
    assert browser.execute_script(kind.format("top1")) == "linear"
    clean(browser, page)


def test_hovering_shows_the_value(browser, tmp_path, make_run):
    run = make_run()
    page = opened(browser, tmp_path, [run])
    # Move the mouse over the fifth evaluation.
    x, y = browser.execute_script(
        "const chart = document.getElementById('chart-top1');"
        "chart.scrollIntoView();"
        "const box = chart.querySelector('.nsewdrag').getBoundingClientRect();"
        "return [box.x + chart._fullLayout.xaxis.d2p(5), box.y + box.height / 2]"
    )
    mouse = ActionBuilder(browser)
    mouse.pointer_action.move_to_location(round(x) - 3, round(y))
    mouse.pointer_action.move_to_location(round(x), round(y))
    mouse.perform()
    shown = WebDriverWait(browser, 10).until(
        lambda _: browser.execute_script(
            "return document.querySelector('#chart-top1 .hoverlayer').textContent"
        )
    )
    assert f"{lines_of(run, 'val', 'top1')[4]['top1']:.2%}" in shown
    assert "epoch 5" in shown
    clean(browser, page)


def test_runs_can_be_hidden(browser, tmp_path, make_run):
    runs = [make_run("small"), make_run("<b>large", batch=1024, seed=1)]
    page = opened(browser, tmp_path, runs)
    names = [trace["name"] for trace in drawn(browser, "top1")]
    assert len(names) == 4
    press(browser, '[data-toggle="1"]')
    assert [trace["visible"] for trace in drawn(browser, "loss")] == [True, False, True, False]
    press(browser, '[data-toggle="1"]')
    assert all(trace["visible"] for trace in drawn(browser, "loss"))
    clean(browser, page)


def test_a_long_run_is_drawn_thinned_with_exact_evaluations(browser, tmp_path, make_run):
    run = make_run(epochs=300, samples=6000, batch=128)
    page = opened(browser, tmp_path, [run])
    train, validation = drawn(browser, "loss")
    everything = [line["loss"] for line in lines_of(run, "train", "loss")]
    assert len(everything) > 10_000
    assert len(train["y"]) <= 2002
    assert (min(train["y"]), max(train["y"])) == (min(everything), max(everything))
    assert validation["y"] == [line["loss"] for line in lines_of(run, "val", "loss")]
    clean(browser, page)


def test_a_step_is_stacked_and_ranks_are_told_apart(browser, tmp_path, make_run):
    run = make_run(ranks=3)
    page = opened(browser, tmp_path, [run])
    stack = drawn(browser, "step_seconds")
    assert [trace["name"] for trace in stack] == [
        "compute",
        "exposed communication",
        "optimizer",
        "waiting for data",
    ]
    assert stack[3]["y"] == [
        line["data_seconds"] for line in lines_of(run, "train", "data_seconds")
    ]
    low, high = vertical_range(browser, "step_seconds")
    assert low == 0
    assert 0.065 < high < 0.12  # of the sums, not of one layer
    power = drawn(browser, "rank-gpu_power_watts")
    assert [trace["name"] for trace in power] == ["rank 0", "rank 1", "rank 2"]
    expected = lines_of(run, ("hardware",), "gpu_power_watts")
    assert power[2]["y"] == [line["gpu_power_watts"] for line in expected if line["rank"] == 2]
    press(browser, '[data-x="step"]')
    assert (
        drawn(browser, "rank-gpu_power_watts")[0]["x"]
        == drawn(browser, "step_seconds")[0]["x"][9::10]
    )
    clean(browser, page)


def test_nothing_overflows_sideways(browser, tmp_path, make_run):
    opened(browser, tmp_path, [make_run("a-run-with-quite-a-long-name-20260102-030405")])
    try:
        for width in (1400, 768, 360):
            device = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
            # Charts follow the width of the page a moment later.
            assert WebDriverWait(browser, 10).until(
                lambda _, width=width: browser.execute_script(
                    "const box = document.querySelector('#chart-loss .main-svg')"
                    ".getBoundingClientRect();"
                    "return innerWidth == arguments[0] && box.width > 250 "
                    "&& document.documentElement.scrollWidth <= innerWidth "
                    "&& [...document.querySelectorAll('.chart .main-svg')].every("
                    "svg => svg.getBoundingClientRect().right <= innerWidth)",
                    width,
                )
            )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_map_of_layers(browser, tmp_path, make_run):
    run = make_run(epochs=4)
    names = [f"layer{index}.weight" for index in range(30)]
    with (run / "layers.jsonl").open("w") as file:
        for number in range(1, 401):
            layers = {n: [1.0 + i, 0.1 * number, 1e-3 * (i + number)] for i, n in enumerate(names)}
            place = {"samples": 100 * number, "step": number, "epoch": number / 100}
            file.write(json.dumps({"split": "layers", **place, "layers": layers}) + "\n")
    page = opened(browser, tmp_path, [make_run("without"), run])
    boxes = "return [...document.querySelectorAll('.layers')].map(box => box.id)"
    assert browser.execute_script(boxes) == ["layers-1"]
    trace = (
        "const trace = document.getElementById('layers-1').data[0];"
        "return [Array.from(trace.x), trace.y, trace.customdata[2].slice(0, 3), trace.z[2][0]]"
    )
    x, y, row, logarithm = browser.execute_script(trace)
    assert len(x) == 200 and x[:2] == [0.01, 0.03]
    assert y == names
    assert row == [0.003, 0.005, 0.007]
    assert logarithm == pytest.approx(-2.5229, abs=1e-4)
    press(browser, '[data-norm="weight"]')
    press(browser, '[data-x="samples"]')
    x, _, row, _ = browser.execute_script(trace)
    assert x[:2] == [100, 300] and row == [3, 3, 3]
    clean(browser, page)


def element_of(browser, key):
    return browser.execute_script(
        "return JSON.parse(document.getElementById('largebatch-data').textContent).charts"
        ".find(chart => chart.key === arguments[0]).id",
        key,
    )


def test_a_language_run_and_its_further_figures(browser, tmp_path, make_language_run):
    run = make_language_run()
    page = opened(browser, tmp_path, [run])
    train, validation = drawn(browser, "perplexity")
    expected = lines_of(run, "val", "perplexity")
    assert validation["y"] == [line["perplexity"] for line in expected]
    assert max(train["y"]) > 10_000
    low, high = vertical_range(browser, "perplexity")
    assert low == 0 and 32 < high < 100, "the first steps must not flatten the rest"
    (noise,) = drawn(browser, "noise_scale")
    assert noise["y"] == [line["noise_scale"] for line in lines_of(run, "train", "noise_scale")]
    (ema,) = drawn(browser, "ema_perplexity")
    assert ema["y"] == [line["ema_perplexity"] for line in expected]
    kind = "return document.getElementById('chart-{}').layout.yaxis.{}"
    assert browser.execute_script(kind.format("token_accuracy", "tickformat")) == "~%"
    assert browser.execute_script(kind.format("perplexity", "tickformat")) == "~g"
    press(browser, '[data-log="1"]')
    for key in ("perplexity", "loss", "ema_perplexity", "lr"):
        assert browser.execute_script(kind.format(key, "type")) == "log"
    clean(browser, page)


@pytest.mark.parametrize("runs", [1, 2])
def test_the_band_of_a_noise_scale(browser, tmp_path, make_noisy_run, runs):
    """An interval without an upper end leaves the chart; the batch is in it."""
    made = [make_noisy_run(f"run{times}", times) for times in (1.0, 4.0)[:runs]]
    page = opened(browser, tmp_path, made)
    traces = drawn(browser, "noise_scale")
    assert len(traces) == 4 * runs
    low, high = traces[:2]
    assert low["y"] == [
        line["noise_scale_low"] for line in lines_of(made[0], "train", "noise_scale_low")
    ]
    ends = [line["noise_scale_high"] for line in lines_of(made[0], "train", "noise_scale_high")]
    assert high["y"][5:] == ends and min(high["y"][:5]) > 1e3 * max(low["y"])
    assert traces[3 * runs]["y"] == [256] * len(traces[3 * runs]["y"])
    bottom, top = (10**end for end in vertical_range(browser, "noise_scale"))
    assert bottom < 256 and max(ends) < top < 1e6
    heat = "return document.getElementById('noise-0').data[0].y"
    assert browser.execute_script(heat) == ["0.weight", "0.bias"]
    clean(browser, page)


@pytest.mark.parametrize("width", [1400, 400])
def test_runs_of_different_tasks_side_by_side(
    browser, tmp_path, make_run, make_language_run, width
):
    runs = [make_run(), make_language_run()]
    device = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    try:
        page = opened(browser, tmp_path, runs)
        names = {key: [t["name"] for t in drawn(browser, key)] for key in ("top1", "perplexity")}
        assert names == {
            "top1": ["digits · train", "digits · val"],
            "perplexity": ["words · train", "words · val"],
        }
        assert len(drawn(browser, "loss")) == 4
        places = (
            "return ['loss', 'hessian_top'].map(key => document.getElementById(`chart-${key}`)"
            ".getBoundingClientRect()).map(box => [box.top, box.height])"
        )
        (above, tall), (below, small) = browser.execute_script(places)
        assert above < below and small < tall
        widest = "return document.documentElement.scrollWidth <= innerWidth"
        assert browser.execute_script(widest)
        clean(browser, page)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_keys_that_objects_have_of_their_own(browser, tmp_path, make_run):
    runs = [make_run("one"), make_run("two")]
    keys = ("constructor", "__proto__", "\ud800 <b>", "a.b/c", "lr2", "rank-x", "toString")
    with (runs[0] / "metrics.jsonl").open("a") as file:
        place = {"samples": 5000, "step": 500, "epoch": 10.5, "split": "train"}
        file.write(json.dumps({**place, **dict.fromkeys(keys, 1.5)}) + "\n")
    headline = {"name": "toString", "better": "lower", "percent": True}
    (runs[0] / "task.json").write_text(json.dumps({"headline": headline}))
    page = opened(browser, tmp_path, runs)
    for key in keys[:2] + keys[3:]:
        (trace,) = drawn(browser, element_of(browser, key))
        assert trace["y"] == [1.5]
    low, high = vertical_range(browser, "toString")
    assert low < 1.5 < high, "no fraction, though it calls itself one"
    clean(browser, page)


def test_the_spectrum_of_the_hessian(browser, tmp_path, make_run):
    run = make_run(epochs=4)
    with (run / "spectrum.jsonl").open("w") as file:
        for number in (1, 2):
            place = {"samples": 100 * number, "step": number, "epoch": number / 2}
            both = {"values": [-1.0, 0.5, 20.0], "weights": [0.1, 0.89, 0.01]}
            file.write(json.dumps({"split": "spectrum", **place, **both}) + "\n")
    opened(browser, tmp_path, [run])
    trace = (
        "const trace = document.getElementById('spectrum-0').data[0];"
        "return [Array.from(trace.x), Array.from(trace.y), trace.marker.color[2]]"
    )
    x, y, colour = browser.execute_script(trace)
    assert x == [0.5] * 3 + [1.0] * 3 and y == [-1.0, 0.5, 20.0] * 2 and colour == -2

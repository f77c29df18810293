"""The command ``largebatch plan``: predict step times on a cluster that need not exist."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from largebatch._errors import UserError
from largebatch._paths import user_path
from largebatch.distributed.cost_model import ALL_REDUCE_FORMULAS, WIRE_SHARE, CostModel
from largebatch.distributed.grid import Grid
from largebatch.record import BenchmarkRecord, write_record
from largebatch.simulate.cluster import (
    FORMULAS,
    MEASURES,
    Cluster,
    Prediction,
    figures,
)
from largebatch.simulate.constants import Device, device, link, measured, published, table
from largebatch.simulate.methods import BEST_GRID, METHODS, Method, automatic, ranges
from largebatch.simulate.nccl import NCCL_FORMULAS
from largebatch.simulate.trace import trace

Build = Callable[[str, dict[str, Any], dict[str, Any]], nn.Module]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(arguments: Sequence[str], build: Build) -> int:
    """Run ``largebatch plan`` and return its exit code.

    Args:
        arguments: command-line arguments.
        build: makes a model from its name, its keys of section ``model`` and the data's offers.
    """
    options = _parse(arguments)
    if options.explain:
        print(explanation())
        return 0
    chip = device(options.device, options.precision)
    cost = _cost(options, chip)
    name, keys = _model(options.model)
    shape, offers = _sample(options)
    step = trace(
        lambda: build(name, keys, offers),
        shape,
        DTYPES.get(options.precision, torch.float32),
    )
    cluster = Cluster(
        step,
        chip,
        cost,
        options.per_node,
        options.bucket_mb,
        options.batch_per_rank,
        options.images_per_second,
    )
    methods = (*METHODS, automatic(options.wire))
    along = {
        by: cluster.scaling(by, options.nodes, options.batch_per_rank, methods)
        for by in ("nodes", "batch")
    }
    asked = [p for p in along["nodes"] if p.nodes == options.nodes]
    notes = _notes(options, cluster, methods[-1])
    _print(options, asked, along, notes)
    if options.json is not None:
        rows = [asdict(p) for p in dict.fromkeys([*along["nodes"], *along["batch"]])]
        formulas = f"{FORMULAS}\n{ALL_REDUCE_FORMULAS}\n{NCCL_FORMULAS}"
        write_record(options.json, BenchmarkRecord("plan", formulas, rows, notes=notes))
        print(f"record: {options.json}")
    if options.plot is not None:
        from largebatch.plan.page import write_page

        timeline, _ = cluster.step(options.nodes, options.batch_per_rank, methods[-1])
        write_page(options.plot, _title(options), asked, along, timeline, notes)
        print(f"plot: {options.plot}")
    return 0


def explanation() -> str:
    """Return the formulas and the shipped constants with their sources."""
    lines = [FORMULAS, "", ALL_REDUCE_FORMULAS, "", NCCL_FORMULAS, "", "Shipped constants:"]
    for name, entry in table()["links"].items():
        rate, latency = float(entry["bandwidth"]) / 1e9, 1e6 * float(entry["latency"])
        lines.append(f"  {name}: {rate:g} GB/s, {latency:g} us ({entry['source']})")
    for name, entry in table()["devices"].items():
        peaks = ", ".join(f"{kind} {float(peak) / 1e12:g}" for kind, peak in entry["peaks"].items())
        memory, capacity = (float(entry[key]) / 1e9 for key in ("memory", "capacity"))
        lines.append(
            f"  {name}: TFLOP/s {peaks}; memory {memory:g} GB/s, {capacity:g} GB "
            f"({entry['source']})"
        )
    lines.append(f"  NCCL's latencies and shares: {table()['nccl']['source']}")
    reached, launch = table()["reached"], table()["launch"]
    least = 1e6 * float(reached["kernel_seconds"])
    lines.append(
        f"  reached by kernels: {reached['flops']} of peak FLOP/s, {reached['bandwidth']} of "
        f"memory bandwidth, {least:g} us at least ({reached['source']})"
    )
    lines.append(f"  launch: {1e6 * float(launch['seconds']):g} us ({launch['source']})")
    return "\n".join(lines)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="largebatch plan",
        exit_on_error=False,
        description="Predict step time, exposed communication and scaling of data parallelism.",
    )
    parser.add_argument("--nodes", type=int, default=16, help="hosts; 16")
    parser.add_argument("--per-node", type=int, default=8, help="ranks of a host; 8")
    parser.add_argument(
        "--model",
        default="resnet50",
        help="as model.name in a config, with further keys of model behind a colon, such as"
        " gpt:layers=12,heads=12,width=768; resnet50",
    )
    parser.add_argument("--image", default="3x224x224", help="channels x height x width")
    parser.add_argument("--classes", type=int, default=1000, help="outputs; 1000")
    parser.add_argument("--context", type=int, help="of text: tokens of a sample")
    parser.add_argument("--vocabulary", type=int, default=50257, help="of text: tokens; 50257")
    parser.add_argument("--batch-per-rank", type=int, default=64, help="samples a rank; 64")
    parser.add_argument("--device", default="a100", help="of every rank; a100")
    parser.add_argument("--precision", default="bf16", help="of operators; bf16")
    parser.add_argument(
        "--link", default="ib-hdr", help="between hosts: a name, or GB/s,microseconds; ib-hdr"
    )
    parser.add_argument("--cards", type=int, default=1, help="network cards of a host; 1")
    parser.add_argument("--local-link", help="within a host, likewise; the device's own")
    parser.add_argument(
        "--constants", type=user_path, help="JSON of a measured cost model, in place of both links"
    )
    parser.add_argument(
        "--images-per-second", type=float, help="measured on one device at --batch-per-rank"
    )
    parser.add_argument("--bucket-mb", default="25", help="MB of a gradient message, or auto; 25")
    parser.add_argument("--wire", default="fp32", help="type between hosts that auto may use; fp32")
    parser.add_argument("--json", type=user_path, help="write all predictions here")
    parser.add_argument("--plot", type=user_path, help="write a page with the plots here (HTML)")
    parser.add_argument("--explain", action="store_true", help="print formulas and constants, stop")
    try:
        options, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"largebatch plan: {error}") from None
    if unknown:
        raise UserError(
            f"largebatch plan: {unknown[0]!r} is no option; largebatch plan --help lists them"
        )
    counts = ("nodes", "per_node", "batch_per_rank", "cards", "classes", "vocabulary", "context")
    for name in counts:
        if getattr(options, name) is not None and not 1 <= getattr(options, name) <= 2**20:
            shown = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise UserError(f"largebatch plan: {shown}: a whole number from 1 to {2**20}")
    rate = options.images_per_second
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"largebatch plan: --images-per-second {rate}: above 0")
    if options.wire not in WIRE_SHARE:
        raise UserError(
            f"largebatch plan: --wire {options.wire}: choose from {', '.join(WIRE_SHARE)}"
        )
    options.bucket_mb = _bucket_mb(options.bucket_mb)
    return options


def _bucket_mb(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"largebatch plan: --bucket-mb {text}: MB above 0, or auto")
    return value


def _model(text: str) -> tuple[str, dict[str, Any]]:
    """Divide NAME:KEY=VALUE,... into the name and the keys; a name may hold a colon itself."""
    name, _, keys = text.rpartition(":")
    if "=" not in keys:
        return text, {}
    found: dict[str, Any] = {}
    for each in keys.split(","):
        key, _, value = each.partition("=")
        words = {"true": True, "false": False}
        number = int(value) if value.isdecimal() else words.get(value)
        if number is None or not key.isidentifier():
            raise UserError(
                f"largebatch plan: --model {text}: {each!r} is no KEY=VALUE of a whole number,"
                " true or false, such as layers=12"
            )
        found[key] = number
    return name, found


def _sample(options: argparse.Namespace) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the shape of a sample, and what such data offer to a model."""
    if options.context is not None:
        return (options.context,), {"vocabulary": options.vocabulary, "context": options.context}
    image = _image(options.image)
    return image, {"num_classes": options.classes, "image_shape": image}


def _image(text: str) -> tuple[int, int, int]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(
            f"largebatch plan: --image {text}: channels x height x width, such as 3x224x224"
        )
    channels, height, width = map(int, sizes)
    return channels, height, width


def _cost(options: argparse.Namespace, chip: Device) -> CostModel:
    if options.constants is not None:
        return measured(options.constants)
    local = link(options.local_link or chip.local, "local-link")
    return published(local, link(options.link, "link", options.cards))


def _title(options: argparse.Namespace) -> str:
    return (
        f"{options.model} on {options.nodes} x {options.per_node} {options.device}, "
        f"{options.batch_per_rank} samples a rank"
    )


def _notes(options: argparse.Namespace, cluster: Cluster, auto: Method) -> list[str]:
    """Return what the figures stand on, what a user would get, and what they leave out."""
    chip, cost = cluster.device, cluster.cost
    names = f"{options.local_link or chip.local} and {options.cards} x {options.link}"
    origin = str(options.constants.name) if options.constants is not None else names
    links = ", ".join(
        f"{where} {1e-9 / one.seconds_per_byte:.4g} GB/s and {1e6 * one.latency:.3g} us"
        for where, one in (("within a host", cost.fast), ("a host's link", cost.slow))
    )
    reached = (
        f"scaled to {options.images_per_second:g} images/s measured on one device"
        if options.images_per_second is not None
        else f"{chip.reached_flops} of peak FLOP/s and {chip.reached_bandwidth} of memory "
        "bandwidth reached, an assumption"
    )
    hosts, size = Grid(options.nodes, options.per_node), 4.0 * cluster.trace.elements
    message = min(size, 1e6 * (options.bucket_mb or 25.0))
    grid, best = BEST_GRID.best(cost, message, hosts)
    runs = (
        "rows within hosts: distributed.torus sets it"
        if grid.row_hosts == 1
        else f"rows over {grid.row_hosts} hosts: largebatch does not run it"
    )
    return [
        f"links: {origin}: {links}, {1e6 * cost.launch:.3g} us a launch",
        f"device: {chip.name} in {options.precision}, {chip.flops / 1e12:g} TFLOP/s, "
        f"{chip.bandwidth / 1e9:g} GB/s ({chip.source}); {reached}",
        f"memory: at least {chip.memory(cluster.trace, options.batch_per_rank) / 1e9:.3g} of "
        f"{chip.capacity / 1e9:g} GB a rank; at most {cluster.largest_batch:,} samples fit",
        "largebatch today (distributed.allreduce=auto), by message: "
        f"{ranges(auto, cost, hosts, size)}",
        f"best grid for {message / 1e6:.3g} MB: {grid} (rows x columns), "
        f"{1e3 * best.seconds:.3g} ms; {runs}",
        "left out: stragglers, other traffic, input, switches that add (NVLS, SHARP); NCCL is its "
        "own tuner's expectation, the flat ring a ring at any size",
    ]


def _print(
    options: argparse.Namespace,
    asked: Sequence[Prediction],
    along: dict[str, list[Prediction]],
    notes: Sequence[str],
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)

    def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = Table(title=title, title_justify="left", title_style="bold", box=None)
        for place, head in enumerate(heads):
            shown.add_column(head, justify="left" if place == 0 else "right", no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)

    show(
        f"{_title(options)}: global batch {asked[0].global_batch:,}",
        ("all-reduce", *MEASURES),
        [(p.method, *figures(p)) for p in asked],
    )
    auto = {by: [p for p in lines if p.method == "auto"] for by, lines in along.items()}
    show(
        "auto against node count",
        ("nodes", "GPUs", *MEASURES),
        [(str(p.nodes), f"{p.ranks:,}", *figures(p)) for p in auto["nodes"]],
    )
    show(
        "auto against batch size",
        ("a rank", "global", *MEASURES),
        [(str(p.batch_per_rank), f"{p.global_batch:,}", *figures(p)) for p in auto["batch"]],
    )
    own = asked[-1]
    console.print(
        f"bounds below which no step can be: {1e3 * own.flops_bound_seconds:.3g} ms by FLOPs, "
        f"{1e3 * own.memory_bound_seconds:.3g} ms by memory, "
        f"{1e3 * own.network_bound_seconds:.3g} ms by network; largebatch plan --explain says how",
        soft_wrap=True,
    )
    for note in notes:
        console.print(note, soft_wrap=True)

"""Plans: never faster than their bounds, and as the published constants say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from largebatch._errors import UserError
from largebatch.simulate import METHODS, Cluster, trace
from largebatch.simulate.cluster import BATCHES, node_counts
from largebatch.simulate.constants import device, link, published, table
from largebatch.simulate.methods import automatic


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 256, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(256, 1000)),
    )


TRACE = trace(convolutional, (3, 64, 64))
ALL = (*METHODS, automatic("fp32"))


def cluster(slow="ib-hdr", per_node=8, name="a100", precision="bf16", **options):
    chip = device(name, precision)
    return Cluster(TRACE, chip, published(link(chip.local), link(slow)), per_node, **options)


@settings(max_examples=40)
@given(
    st.sampled_from(["ib-edr", "ib-ndr", "ethernet-1g"]),
    st.integers(1, 8),
    st.integers(1, 512),
    st.integers(1, 1024),
    st.sampled_from(ALL),
)
def test_never_faster_than_the_bounds(slow, per_node, nodes, batch, method):
    p = cluster(slow, per_node).predict(nodes, batch, method)
    bounds = (p.flops_bound_seconds, p.memory_bound_seconds, p.network_bound_seconds)
    assert p.step_seconds * (1 + 1e-9) >= max(bounds)
    assert 0 < p.efficiency <= 1
    assert p.step_seconds == pytest.approx(p.compute_seconds + p.exposed_seconds)
    assert p.exposed_seconds <= p.communication_seconds * (1 + 1e-9) + 1e-12
    assert p.samples_per_second == pytest.approx(p.global_batch / p.step_seconds)


def test_one_rank_alone_is_the_yardstick():
    p = cluster(per_node=1).predict(1, 64, automatic("fp32"))
    assert p.efficiency == 1.0 and p.communication_seconds == 0.0


def test_auto_is_never_behind_the_two_it_chooses_from():
    plan = cluster("ethernet-1g")
    by_name = {m.name: plan.predict(16, 32, m).communication_seconds for m in ALL}
    assert by_name["auto"] <= min(by_name["NCCL"], by_name["torus"])
    assert by_name["torus, best grid"] <= by_name["torus"]
    assert by_name["torus"] < by_name["flat ring"]


def test_buckets_chosen_for_the_case_expose_no_more():
    fixed = cluster(bucket_mb=1e-3)
    chosen = cluster(bucket_mb=None)
    method = automatic("fp32")
    assert chosen.predict(64, 32, method).step_seconds < fixed.predict(64, 32, method).step_seconds


def test_a_measured_throughput_is_met_at_its_batch():
    plan = cluster(samples_per_second=5000.0, asked_batch=64)
    assert plan.compute(64).seconds == pytest.approx(64 / 5000)
    own = cluster()
    factor = plan.compute(64).seconds / own.compute(64).seconds
    assert plan.compute(128).seconds == pytest.approx(factor * own.compute(128).seconds)


def test_a_throughput_beyond_the_peak_is_refused():
    with pytest.raises(UserError, match="peak of 312 TFLOP/s"):
        cluster(samples_per_second=1e9, asked_batch=64)


def test_the_sweep_reaches_4096_gpus_and_the_nodes_asked_for():
    assert node_counts(6, 8) == [1, 2, 4, 6, 8, 16, 32, 64, 128, 256, 512]
    assert node_counts(4096, 1)[-1] == 4096
    assert node_counts(1000, 8)[-1] == 1000
    assert {p.batch_per_rank for p in cluster().scaling("batch", 2, 48, ALL)} == {48, *BATCHES}


def test_every_constant_has_its_source():
    entries = [*table()["links"].values(), *table()["devices"].values()]
    assert all(entry["source"] for entry in [*entries, table()["launch"], table()["reached"]])
    for name, entry in table()["devices"].items():
        for precision in entry["peaks"]:
            assert device(name, precision).flops > 1e12
        assert link(entry["local"]).seconds_per_byte < 1e-10


def test_cards_add_up_and_links_can_be_given():
    assert link("ib-edr", cards=2).seconds_per_byte == pytest.approx(1 / 25e9)
    given = link("0.025,50")
    assert (given.latency, given.seconds_per_byte) == pytest.approx((50e-6, 1 / 25e6))

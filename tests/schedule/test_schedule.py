"""Schedule: warm-up, scaling, regime, phases, and what it prints."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.schedule import BatchConfig, Duration, PhaseConfig, Schedule, ScheduleConfig


def duration(text):
    return Duration.parse(text)


def build(batch=None, lr=0.1, scaling="none", epoch_samples=50_000, minimum=1, cycles=None, **keys):
    for name in ("length", "warmup", "cycle"):
        if isinstance(keys.get(name), str):
            keys[name] = duration(keys[name])
    keys["milestones"] = [duration(text) for text in keys.get("milestones", [])]
    return Schedule(
        ScheduleConfig(**keys), batch or BatchConfig(), lr, scaling, epoch_samples, minimum, cycles
    )


def phase(until=None, **keys):
    return PhaseConfig(until=duration(until) if until else None, **keys)


@pytest.mark.parametrize("size", [1, 32, 32_768])
def test_poly_with_warm_up_has_mlperfs_golden_values(size):
    schedule = build(
        BatchConfig(size=size), 10.0, epoch_samples=150 * size, length="1ep", warmup="50st",
        curve="poly", end=1e-4,
    )  # fmt: skip
    golden = {
        0: 0,
        1: 0.2,
        50: 10,
        51: 9.802962,
        52: 9.607886,
        100: 2.549825,
        149: 0.004021,
        150: 0.001080,
    }
    for step, rate in golden.items():
        assert schedule.lr(step * size, size) == pytest.approx(rate, abs=5e-7)


def test_goyals_warm_up_climbs_from_the_reference_rate():
    schedule = build(
        BatchConfig(size=8192, reference=256), 0.1, "linear", epoch_samples=1_280_000,
        length="90ep", warmup="5ep", warmup_start="reference", curve="multistep",
        milestones=["30ep", "60ep", "80ep"],
    )  # fmt: skip
    epochs = {0: 0.1, 2.5: 1.65, 5: 3.2, 29.9: 3.2, 30: 0.32, 60: 0.032, 80: 0.0032}
    for epoch, rate in epochs.items():
        assert schedule.lr(round(epoch * 1_280_000)) == pytest.approx(rate)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["constant", "multistep", "poly", "cosine", "sgdr", "cyclical"]),
    st.integers(1, 4096),
    st.floats(0, 1),
)
def test_the_batch_does_not_move_a_schedule(curve, size, place):
    keys = {"length": "20ep", "curve": curve, "end": 0.001}
    if curve == "multistep":
        keys["milestones"] = ["5ep", "50%", "400ksa"]
    if curve in ("sgdr", "cyclical"):
        keys["cycle"] = "3ep"
    if curve != "cyclical":
        keys["warmup"] = "5%"
    samples = int(place * 500_000)
    one = build(BatchConfig(size=256, reference=256), epoch_samples=25_000, **keys)
    other = build(BatchConfig(size=size, reference=256), epoch_samples=25_000, **keys)
    assert one.lr(samples) == other.lr(samples)
    assert one.total_samples == other.total_samples == 500_000


@pytest.mark.parametrize("size", [128, 256, 512, 4096])
def test_regime_adaptation_keeps_the_number_of_updates(size):
    schedule = build(
        BatchConfig(size=size, reference=128), 0.1, "sqrt", epoch_samples=8192, regime="steps",
        length="50ep", warmup="81920sa", curve="multistep", milestones=["10ep", "50%"],
    )  # fmt: skip
    assert schedule.plan.total_steps == 50 * 8192 // 128
    plan = schedule.plan
    rates = [schedule.lr(plan.samples_after(n)) for n in range(plan.total_steps)]
    changes = [n for n in range(1, len(rates)) if rates[n] < rates[n - 1]]
    assert changes == [640, 1600]
    assert plan.steps_until(schedule.warmup_samples) == 640
    assert schedule.regime_factor == size // 128


def test_regime_adaptation_is_hoffers_ceiling():
    def factor(size):
        return build(BatchConfig(size=size, reference=256), regime="steps").regime_factor

    assert [factor(size) for size in (64, 256, 257, 4096)] == [1, 1, 2, 16]


def test_regime_contradictions():
    with pytest.raises(UserError, match=r"batch.reference"):
        build(BatchConfig(size=512), regime="steps")
    growing = BatchConfig(reference=64, plan=[phase("5ep", size=128), phase(size=256)])
    with pytest.raises(UserError, match=r"128, 256"):
        build(growing, regime="steps")


def test_phases_carry_batch_rate_and_extent():
    plan = [
        phase("10ep", size=1024, extent=128),
        phase("50%", micro=32),
        phase(size=4096, lr_multiplier=0.5, extent=288),
    ]
    schedule = build(
        BatchConfig(size=2048, micro="auto", reference=256, plan=plan), 0.1, "sqrt",
        length="40ep", curve="constant",
    )  # fmt: skip
    rates = [schedule.lr(epoch * 50_000) for epoch in (0, 10, 20)]
    assert rates == pytest.approx([0.2, 0.1 * 8**0.5, 0.2])
    assert [p.size for p in schedule.plan.phases] == [1024, 2048, 4096]
    assert [p.micro for p in schedule.plan.phases] == ["auto", 32, "auto"]
    assert [p.extent for p in schedule.plan.phases] == [128, None, 288]
    assert [p.end for p in schedule.plan.phases] == [500_000, 1_000_000, None]
    assert schedule.lr(0, 256) == pytest.approx(0.1)
    text = "\n".join(schedule.describe())
    assert "lr 0.2 = 0.1 x sqrt(1024/256)" in text
    assert "lr x 0.5" in text


@pytest.mark.parametrize("warmup", ["10st", "10240sa", "1.024%", "0.2048ep"])
def test_a_phase_warms_up_again_from_its_first_step(warmup):
    plan = [phase("10ep", size=1000), phase(size=1024, warmup=duration(warmup))]
    schedule = build(BatchConfig(plan=plan), 0.1, length="1Msa", curve="constant")
    begins = schedule.plan.start_of(schedule.plan.phases[1])
    assert begins == 500_000
    rates = [schedule.lr(begins + step * 1024) for step in (-1, 0, 1, 5, 10, 11)]
    assert rates == pytest.approx([0.1, 0.0, 0.01, 0.05, 0.1, 0.1])
    assert "warm-up of 10,240 samples" in "\n".join(schedule.describe())
    with pytest.raises(UserError, match=r"batch.plan\[0\].warmup=1ep: .* schedule.warmup"):
        build(BatchConfig(plan=[phase("1ep", warmup=duration("1ep")), phase()]))


def test_smiths_growth_leaves_the_rate_alone_and_grows_the_batch():
    plan = [phase("60ep", size=128), phase("120ep", size=640), phase(size=3200)]
    schedule = build(BatchConfig(plan=plan), length="160ep", curve="constant")
    assert {schedule.lr(epoch * 50_000) for epoch in (0, 59, 60, 130)} == {0.1}
    sizes = [schedule.plan.step_at(epoch * 50_000).size for epoch in (0, 60, 120)]
    assert sizes == [128, 640, 3200]


def test_the_short_last_step_keeps_its_phases_rate():
    schedule = build(BatchConfig(size=300, reference=100), 0.1, "linear", 1000, curve="constant")
    last = schedule.plan.step_at(900)
    assert last.size == 100
    assert schedule.lr(last.start) == pytest.approx(0.3)


def test_lengths_in_steps():
    growing = [phase("2st", size=100), phase("600sa", size=200), phase(size=400)]
    schedule = build(BatchConfig(plan=growing), epoch_samples=1000, length="7st", curve="constant")
    sizes = [step.size for step in schedule.plan.steps()]
    assert sizes == [100, 100, 200, 200, 400, 400, 400]
    assert schedule.total_samples == 1800


def test_a_length_in_steps_with_a_plan_in_percent():
    crop = [phase("50%", extent=128), phase(extent=224)]
    schedule = build(BatchConfig(size=100, plan=crop), epoch_samples=1000, length="40st")
    assert schedule.plan.phases[0].end == 2000
    growing = [phase("50%", size=128), phase(size=256)]
    with pytest.raises(UserError, match=r"batch.plan\[0\].until=50%.*length=40st"):
        build(BatchConfig(plan=growing), epoch_samples=1000, length="40st")


def test_snapshot_cycles():
    schedule = build(curve="sgdr", cycles=5, length="1003sa", epoch_samples=1003)
    assert schedule.cycle_ends == [201, 402, 603, 804, 1003]
    assert schedule.lr(201) == pytest.approx(0.1)
    assert schedule.lr(200) < 1e-5
    triangles = build(curve="cyclical", cycles=2, length="1000sa", epoch_samples=1000)
    assert triangles.cycle_ends == [500, 1000]
    assert triangles.lr(250) == pytest.approx(0.1)
    assert triangles.lr(500) == 0
    assert build(curve="cosine", length="1ep").cycle_ends == [50_000]
    with pytest.raises(UserError, match=r"snapshot.cycles=5.*cyclical or sgdr"):
        build(cycles=5)
    with pytest.raises(UserError, match=r"leave out schedule.cycle"):
        build(curve="sgdr", cycle="3ep", cycles=5)


def test_describe_says_what_was_derived():
    schedule = build(
        BatchConfig(size=4096, reference=256), 0.1, "sqrt", epoch_samples=61_440, length="30ep",
        warmup="2ep", regime="steps",
    )  # fmt: skip
    lines = schedule.describe()
    assert lines[0] == "lr 0.4 = 0.1 x sqrt(4096/256)"
    assert "regime steps: epochs and samples x 16 = ceil(4096/256)" in lines
    assert "length 30ep = 29,491,200 samples, 7,200 steps" in lines
    assert "warm-up 2ep from lr 0: 1,966,080 samples, 480 steps" in lines
    assert any(line.startswith("curve cosine") for line in lines)
    silent = build(BatchConfig(size=4096, reference=256)).describe()
    assert silent[0] == "lr 0.1 for batch 4096: optim.scaling is none"


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"length": "5%"}, "schedule.length=5%"),
        ({"length": "0ep"}, "schedule.length=0ep"),
        ({"length": "0.000001ep"}, "less than one sample"),
        ({"warmup": "31ep"}, "schedule.warmup=31ep"),
        ({"curve": "cosin"}, "did you mean 'cosine'"),
        ({"curve": "multistep"}, "needs at least one"),
        ({"milestones": ["5ep"]}, "schedule.curve=multistep only"),
        ({"curve": "multistep", "milestones": ["9ep", "5ep"]}, "each later"),
        ({"curve": "sgdr"}, "schedule.cycle"),
        ({"curve": "cyclical"}, "schedule.cycle"),
        ({"curve": "cosine", "cycle": "5ep"}, "schedule.cycle=5ep"),
        ({"curve": "sgdr", "cycle": "0ep"}, "schedule.cycle=0ep"),
        ({"curve": "sgdr", "cycle": "0.000001ep"}, "less than one sample"),
        ({"curve": "cyclical", "cycle": "5ep", "warmup": "1ep"}, "no warm-up"),
        ({"curve": "sgdr", "cycle": "5ep", "cycle_mult": 0.5}, "schedule.cycle_mult=0.5"),
        ({"gamma": 0.0}, "schedule.gamma=0.0"),
        ({"power": float("nan")}, "schedule.power=nan"),
        ({"end": -1.0}, "schedule.end=-1.0"),
        ({"lr": -0.1}, "optim.lr=-0.1"),
        ({"lr": float("inf")}, "optim.lr=inf"),
        ({"scaling": "cube"}, "optim.scaling='cube'"),
        ({"batch": BatchConfig(size=0)}, "batch.size=0"),
        ({"batch": BatchConfig(micro=0)}, "batch.micro=0"),
        ({"batch": BatchConfig(reference=-1)}, "batch.reference=-1"),
        ({"batch": BatchConfig(plan=[PhaseConfig(), PhaseConfig()])}, r"batch.plan\[0\].until"),
        ({"batch": BatchConfig(plan=[PhaseConfig(size=0)])}, r"batch.plan\[0\].size=0"),
        ({"batch": BatchConfig(plan=[PhaseConfig(lr_multiplier=-1.0)])}, "lr_multiplier=-1.0"),
        ({"batch": BatchConfig(size=1), "minimum": 2}, "batch.size=1"),
    ],
)
def test_refusals(keys, match):
    with pytest.raises(UserError, match=match):
        build(**keys)

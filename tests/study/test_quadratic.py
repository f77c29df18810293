"""The data set whose training is known: its expectation, and studies of it against exact values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from largebatch.data import DataConfig, Delivery, Request, build_source
from largebatch.data.quadratic import FEATURES, NOISE, SPECTRUM, TRUTH
from largebatch.study.overhead import Curve, limit_of, overhead_of, overheads
from largebatch.study.quadratic import Moments, after, expected_curve, samples_to


def rows(epoch: int, first: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    source = build_source(DataConfig(name="quadratic"), "train")
    numbers = np.arange(first, first + count)
    batch = source.batch(Request(epoch, numbers, numbers), Delivery(seed=seed, dtype=torch.float64))
    return batch.inputs.flatten(1).numpy(), batch.targets[:, 0].numpy()


def test_samples_are_what_they_are_said_to_be() -> None:
    inputs, targets = rows(0, 0, 8192)
    assert np.square(inputs).mean(0) == pytest.approx(SPECTRUM, rel=0.08)
    assert (targets - inputs @ TRUTH).std() == pytest.approx(NOISE, rel=0.03)
    again, _ = rows(0, 100, 10)
    assert (again == inputs[100:110]).all(), "keyed to the sample"
    other, _ = rows(1, 100, 10)
    assert not np.isclose(other, again).any(), "an epoch draws anew"
    assert abs(np.corrcoef(inputs[:, 0], inputs[:, 1])[0, 1]) < 0.05


def test_the_validation_set_is_the_population() -> None:
    source = build_source(DataConfig(name="quadratic"), "val")
    numbers = np.arange(FEATURES)
    batch = source.batch(Request(0, numbers, numbers), Delivery(train=False, dtype=torch.float64))
    weights = np.linspace(-1, 1, FEATURES)
    inputs, targets = batch.inputs.flatten(1).numpy(), batch.targets[:, 0].numpy()
    loss = np.square(inputs @ weights - targets).mean() / 2
    assert loss == pytest.approx(SPECTRUM @ (weights - TRUTH) ** 2 / 2, rel=1e-12)
    assert np.square(targets).mean() / 2 == pytest.approx(1.0)


def walk(generator, error, batch, rate, steps, half_life):
    """Take steps of SGD; return the losses of weights and average after each, and the error."""
    average, losses, averaged = error.copy(), [], []
    factor = 2 ** (-batch / half_life)
    for _ in range(steps):
        draws = generator.standard_normal((batch, FEATURES + 1))  # a sample a row
        x, noise = draws[:, 1:] * np.sqrt(SPECTRUM), NOISE * draws[:, 0]
        error = error - rate * x.T @ (x @ error - noise) / batch
        average = factor * average + (1 - factor) * error
        losses.append(SPECTRUM @ error**2 / 2)
        averaged.append(SPECTRUM @ average**2 / 2)
    return np.array(losses), np.array(averaged), error


def test_expectations_are_those_of_many_runs() -> None:
    batch, rate, steps, half_life = 8, 0.4, 100, 160.0
    runs = [
        walk(np.random.default_rng(seed), -TRUTH, batch, rate, steps, half_life)
        for seed in range(150)
    ]
    losses, averaged = (np.array([run[kind] for run in runs]) for kind in (0, 1))
    _, moments = after(Moments(), batch * steps, batch, lambda _: rate, half_life)
    for found, exact in (
        (losses, [m.loss for m in moments[1:]]),
        (averaged, [m.averaged for m in moments[1:]]),
    ):
        error = found.std(0, ddof=1) / np.sqrt(len(runs))
        assert (np.abs(found.mean(0) - exact) < 4.5 * error + 1e-12).all()


def test_samples_to_a_target() -> None:
    needed = samples_to(0.2, 8, lambda _: 0.4, 10_000)
    assert needed is not None
    _, moments = after(Moments(), 10_000, 8, lambda _: 0.4)
    step = next(n for n, each in enumerate(moments) if each.loss <= 0.2)
    assert 8 * (step - 1) < needed <= 8 * step
    assert samples_to(0.2, 8, lambda _: 40.0, 10_000) is None, "diverges"


OWN, RATE, WINDOW = 4, 0.16, 1600
FACTORS = (2, 4, 8, 16)


def expected(start: int, factor: int, plain: bool) -> Curve:
    """Return expected losses of a branch's average, or of its plain weights."""
    _, begun = after(Moments(), start, OWN, lambda _: RATE)
    curve = expected_curve(
        begun[-1], factor * OWN, RATE * factor**0.5, WINDOW, WINDOW / 8, not plain
    )
    assert curve is not None
    return curve


def exact(start: int, plain: bool) -> float:
    """Return B20 of expected losses, under the rule sqrt."""
    curves = {factor: expected(start, factor, plain) for factor in (1, *FACTORS)}
    values = {k * OWN: [overhead_of(curves[k], curves[1], WINDOW)] for k in FACTORS}
    return limit_of(OWN, overheads(values)).batch or np.inf


def test_it_grows_along_the_run_and_plain_losses_overstate_it() -> None:
    averaged, plain = ([exact(start, k) for start in (400, 800, 1600)] for k in (False, True))
    assert averaged == sorted(averaged) and averaged[-1] > 1.8 * averaged[0]
    assert all(p > 1.1 * a for p, a in zip(plain, averaged, strict=True))
    assert plain[-1] > 3 * averaged[-1], "fast catch-up"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_intervals_hold_the_exact_value() -> None:
    """Fifty studies by branches at four seeds: B20 in at least 45 intervals; plain ones above."""
    start, truth = 1600, exact(1600, False)
    held, widths, above = 0, [], 0
    for study in range(50):
        values: dict[bool, dict[int, list[float]]] = {
            plain: {factor * OWN: [] for factor in FACTORS} for plain in (False, True)
        }
        for seed in range(4):
            generator = np.random.default_rng([study, seed])
            *_, error = walk(generator, -TRUTH, OWN, RATE, start // OWN, np.inf)
            samples = generator.bit_generator.state  # the same for all branches
            curves: dict[int, tuple[Curve, Curve]] = {}
            for factor in (1, *FACTORS):
                generator.bit_generator.state = samples
                batch = factor * OWN
                steps = -(-int(1.2 * WINDOW) // batch)
                plain, averaged, _ = walk(
                    generator, error, batch, RATE * factor**0.5, steps, WINDOW / 8
                )
                at = batch * np.arange(1.0, steps + 1)
                curves[factor] = Curve(at, averaged), Curve(at, plain)
            for kind, of_kind in values.items():
                for factor in FACTORS:
                    pair = curves[factor][kind], curves[1][kind]
                    of_kind[factor * OWN].append(overhead_of(*pair, WINDOW))
        limit = limit_of(OWN, overheads(values[False]))
        low, high = limit.low or np.inf, limit.high or np.inf
        held += low <= truth <= high
        widths.append(high / low)
        raw = limit_of(OWN, overheads(values[True])).batch
        above += raw is None or raw > truth
    print(f"{held} of 50 hold {truth:.4g}; width {np.median(widths):.3g}; plain above: {above}")
    assert held >= 45, held
    assert np.median(widths) < 2, np.median(widths)
    assert above >= 45, above

"""Scaling rules and half-lives."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.schedule import half_life_factor, scale_lr


def test_rules():
    assert scale_lr(0.1, 8192, 256, "linear") == pytest.approx(3.2)  # Goyal et al. 2017
    assert scale_lr(0.1, 4096, 256, "sqrt") == pytest.approx(0.4)  # Hoffer et al. 2017
    assert scale_lr(0.1, 4096, 256, "none") == 0.1
    assert scale_lr(0.1, 64, 256, "linear") == pytest.approx(0.025)


def test_refusals():
    with pytest.raises(
        UserError, match=r"optim.scaling='square'.*did you mean 'sqrt'|none, linear"
    ):
        scale_lr(0.1, 4, 2, "square")
    with pytest.raises(UserError, match=r"at least 1"):
        scale_lr(0.1, 0, 2, "sqrt")


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.integers(1, 10**6))
def test_a_half_life_does_not_care_how_samples_are_cut_into_steps(steps, half_life):
    product = math.prod(half_life_factor(step, half_life) for step in steps)
    assert product == pytest.approx(half_life_factor(sum(steps), half_life), rel=1e-9, abs=1e-300)


def test_half_life():
    assert half_life_factor(1000, 1000) == 0.5
    assert half_life_factor(3000, 1000) == 0.125

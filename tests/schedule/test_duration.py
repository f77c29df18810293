"""Duration: exact reading, writing and conversion."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch._errors import UserError
from largebatch.schedule import BatchPlan, Clock, Duration, Phase


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("90ep", 90, "ep"),
        ("1.28Msa", 1_280_000, "sa"),
        ("500st", 500, "st"),
        ("5%", 5, "%"),
        ("0.5ep", 0.5, "ep"),
        (".5ep", 0.5, "ep"),
        ("3ksa", 3000, "sa"),
        ("2Gsa", 2 * 10**9, "sa"),
        ("1e5sa", 100_000, "sa"),
        (" 12 st ", 12, "st"),
        ("0st", 0, "st"),
    ],
)
def test_parse(text, value, unit):
    duration = Duration.parse(text)
    assert (duration.value, duration.unit) == (value, unit)


@pytest.mark.parametrize(
    "text",
    ["90", "ep", "", "-5ep", "nanep", "infsa", "1.5st", "0.3sa", "90epochs", "5Mep", "101%",
     "1,000sa", "1e999999999ep", "9" * 50 + "sa", "٣ep", "90 e p", 30,
     None, 1.5, True, ["90ep"], b"90ep"],
)  # fmt: skip
def test_parse_refuses_in_one_line(text):
    with pytest.raises(UserError) as caught:
        Duration.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert str(text)[:10].strip() in message


@given(st.integers(0, 10**12), st.sampled_from(["ep", "sa", "st"]))
def test_text_round_trip_of_whole_numbers(value, unit):
    duration = Duration(value, unit)
    assert Duration.parse(str(duration)) == duration


@given(st.decimals(0, 100, places=6), st.sampled_from(["ep", "%"]))
def test_text_round_trip_of_decimals(value, unit):
    duration = Duration.parse(f"{value}{unit}")
    assert Duration.parse(str(duration)) == duration


def test_text_is_the_short_form():
    texts = [
        "90ep",
        "1.28Msa",
        "60ksa",
        "1234567sa",
        "500st",
        "5%",
        "0.25ep",
        "1Gsa",
        "0sa",
        "0.1ep",
    ]
    assert [str(Duration.parse(text)) for text in texts] == texts


def test_is_a_value():
    duration = Duration.parse("1.28Msa")
    assert duration == Duration(1_280_000, "sa")
    assert hash(duration) == hash(Duration(1_280_000, "sa"))
    assert duration != Duration(1_280_000, "st")
    assert duration != "1.28Msa"
    assert pickle.loads(pickle.dumps(duration)) == copy.deepcopy(duration) == duration
    with pytest.raises(AttributeError):
        duration.value = 1
    with pytest.raises(AttributeError):
        del duration.unit


def test_samples():
    plan = BatchPlan([Phase(300)], epoch_samples=1000, total_samples=10_000)
    clock = Clock(1000, 10_000, plan)
    expected = {
        "2ep": 2000,
        "0.5ep": 500,
        "5%": 500,
        "77sa": 77,
        "4st": 1000,
        "5st": 1300,
        "900st": 10_000,
    }
    assert {text: Duration.parse(text).samples(clock) for text in expected} == expected


def test_thirds_of_an_epoch_round_to_the_nearest():
    assert Duration.parse("0.1ep").samples(Clock(15)) == 2
    assert Duration.parse("0.3ep").samples(Clock(5)) == 2
    assert Duration.parse("0.1ep").samples(Clock(14)) == 1


def test_a_clock_says_what_it_cannot_convert():
    with pytest.raises(UserError, match=r"%"):
        Duration.parse("5%").samples(Clock(1000))
    with pytest.raises(UserError, match=r"7st"):
        Duration.parse("7st").samples(Clock(1000))

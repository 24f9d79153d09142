import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloftrag.prompts import rating


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("00", 0.0),
        ("7", 7.0),
        ("08", 8.0),
        ("10", 10.0),
        ("8.5", 8.5),
        ("[8]", 8.0),
        ("[8.5]/10", 8.5),
        ("8/10", 8.0),
        ("8 / 10.", 8.0),
        ("  9\n", 9.0),
        ("9.", 9.0),
        ("٨", 8.0),
        ("８", 8.0),
    ],
)
def test_a_rating_is_read_in_each_way_that_models_write_it(reply: str, expected: float) -> None:
    assert rating.read(reply) == expected


@pytest.mark.parametrize("reply", ["", " ", "good", "nan", "inf", "-3", "11", "10.5", "85", "100", "8/5", "8 of 10", "8 9", "about 8", "²"])
def test_what_is_not_one_number_from_0_to_10_is_no_rating(reply: str) -> None:
    assert rating.read(reply) is None


def test_the_asked_form_has_the_eleven_ratings_and_none_begins_another() -> None:
    written = [rating.written(number) for number in range(11)]
    assert all(re.fullmatch(rating.FORM, reply) for reply in written)
    assert [rating.read(reply) for reply in written] == list(range(11))
    assert len({reply[0] for reply in written}) == 11
    assert not any(re.fullmatch(rating.FORM, reply) for reply in ("10", "11", "08", "te", ""))


@pytest.mark.parametrize(
    ("first_tokens", "expected"),
    [
        ({"8": 1.0}, 8.0),
        ({"8": 0.5, "6": 0.5}, 7.0),
        ({"0": 0.25, "ten": 0.75}, 7.5),
        ({"0": 0.5, "t": 0.2, "te": 0.2, "ten": 0.1}, 5.0),  # pieces of one word, as a tokeniser may have them
        ({" 8": 0.5, "8": 0.5}, 8.0),
        ({"8": 0.2, "9": 0.2, "The": 0.6}, 8.5),  # renormalised
        ({"The": 1.0}, None),
        ({"": 1.0}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_expected_rating_is_the_mean_over_what_the_first_token_may_be(first_tokens: dict[str, float] | None, expected: float) -> None:
    assert rating.expected(first_tokens) == (None if expected is None else pytest.approx(expected))


@given(st.text())
def test_any_reply_gives_a_rating_in_range_or_none(reply: str) -> None:
    found = rating.read(reply)
    assert found is None or 0 <= found <= 10

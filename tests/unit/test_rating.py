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
    written = [f"{first}{second}" for first in "0123456789" for second in "0123456789"]
    kept = [reply for reply in written if re.fullmatch(rating.FORM, reply)]
    assert [rating.read(reply) for reply in kept] == list(range(11))
    assert not any(re.fullmatch(rating.FORM, reply) for reply in "0123456789")


@given(st.text())
def test_any_reply_gives_a_rating_in_range_or_none(reply: str) -> None:
    found = rating.read(reply)
    assert found is None or 0 <= found <= 10

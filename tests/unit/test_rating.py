import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloftrag.prompts import rate_text, rating
from aloftrag.prompts.chat import ChatPrompt, Prompt, encode_content
from aloftrag.prompts.worked_examples import worked_examples
from tests.unit.tokenizers_made_here import FAMILIES, SPLITS, tokenizer_of


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
    assert all(re.fullmatch(rating.FORM, reply) for reply in rating.WRITTEN)
    assert [rating.read(reply) for reply in rating.WRITTEN] == list(range(11))
    assert len({reply[0] for reply in rating.WRITTEN}) == 11
    assert not any(re.fullmatch(rating.FORM, reply) for reply in ("1", "10", "11", "08", "te", ""))


@pytest.mark.parametrize(
    ("first_tokens", "expected"),
    [
        ({"8": 1.0}, 8.0),
        ({"8": 0.5, "6": 0.5}, 7.0),
        ({"0": 0.25, "ten": 0.75}, 7.5),
        ({"0": 0.5, "t": 0.2, "te": 0.2, "ten": 0.1}, 5.0),  # pieces of one word, as a tokeniser may have them
        ({"on": 0.5, "3": 0.5}, 2.0),
        ({" 8": 0.5, "8": 0.5}, 8.0),
        ({"1": 0.5, "10": 0.2, "8": 0.3}, 8.0),  # where a server does not hold to the form: a 1, or the beginning of a 10
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


# So often that these become tokens wherever a tokenizer lets them.
COMMON = tuple(f"Rating{sign}{word}\n" * 50 for sign in (": ", "=", ":", " :", "\n") for word in (*rating.WRITTEN, "10"))


@pytest.fixture(params=[*SPLITS, "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """One as each family has them; chats as in Qwen."""
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2_tokenizer")
    return tokenizer_of(FAMILIES[0], SPLITS[request.param], COMMON)


def tokens_of_ratings(tokenizer: Any, before: str, prompt: Prompt) -> list[int]:
    """The token that begins each rating when what stands before it in the prompt and the rating are tokenised as one text."""
    prompt_ids = prompt.token_ids(tokenizer)
    found = []
    for written in rating.WRITTEN:
        ids = encode_content(tokenizer, before + written)
        length = len(encode_content(tokenizer, before))
        assert ids[:length] == prompt_ids[-length:], "the model would see other tokens than it learned from"
        found.append(ids[length])
    return found


@pytest.mark.parametrize("count", [0, 13])
def test_each_rating_begins_with_a_token_of_its_own(count: int, tokenizer: Any) -> None:
    prompt = rate_text.prompt("The west gate opens at noon.", "English", worked_examples("en", count), "instructions-first")
    before = prompt.prefill if isinstance(prompt, ChatPrompt) else "Rating :"
    tokens = tokens_of_ratings(tokenizer, before, prompt)
    assert len(set(tokens)) == 11
    # and its probability is that rating's
    assert [rating.expected({tokenizer.decode([token]): 1.0}) for token in tokens] == list(range(11))

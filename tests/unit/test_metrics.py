import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloftrag.evaluation import metrics


@pytest.mark.parametrize(
    ("cited", "accuracy", "exact", "precision"),
    [
        ([2], 1.0, 1.0, 1.0),
        ([3], 0.0, 0.0, 0.0),
        ([1, 2], 1.0, 0.0, 0.5),
        ([1, 2, 3, 4], 1.0, 0.0, 0.25),
        ([1, 3], 0.0, 0.0, 0.0),
        ([], 0.0, 0.0, 0.0),
        (None, 0.0, 0.0, 0.0),
    ],
)
def test_what_a_citation_is_worth_when_text_2_is_the_positive(
    cited: list[int] | None, accuracy: float, exact: float, precision: float
) -> None:
    assert metrics.citation_accuracy(cited, {2}) == accuracy
    assert metrics.citation_exact(cited, {2}) == exact
    assert metrics.citation_precision(cited, {2}) == precision


@pytest.mark.parametrize(
    ("cited", "accuracy", "exact", "precision"),
    [([2], 1.0, 1.0, 1.0), ([4], 1.0, 1.0, 1.0), ([2, 4], 1.0, 1.0, 1.0), ([4, 1], 1.0, 0.0, 0.5), ([1], 0.0, 0.0, 0.0)],
)
def test_a_text_that_answers_too_is_as_right_as_the_positive(cited: list[int], accuracy: float, exact: float, precision: float) -> None:
    right = {2, 4}
    assert metrics.citation_accuracy(cited, right) == accuracy
    assert metrics.citation_exact(cited, right) == exact
    assert metrics.citation_precision(cited, right) == precision


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "The  U.S. dollar, an  old coin!", ["us", "dollar", "old", "coin"]),
        ("de", "Die Straße (an der Elbe)", ["die", "strasse", "an", "der", "elbe"]),
        ("fr", "a l'an", ["a", "lan"]),
        ("zh", "1812年，艾达 Moss。", list("1812年艾达moss")),
        ("ja", "「水車」は　三つ", list("水車は三つ")),
        ("th", "ปลา ดี", list("ปลาดี")),
        ("ko", "오래된 물레방아.", ["오래된", "물레방아"]),
        ("en", "ｆｕｌｌ width", ["full", "width"]),
        ("en", "— ! $", []),
    ],
)
def test_answers_are_compared_by_their_words_or_by_characters_where_no_spaces_part_words(
    language: str, text: str, tokens: list[str]
) -> None:
    assert metrics.answer_tokens(text, language) == tokens


@pytest.mark.parametrize(
    ("answer", "gold", "language", "f1"),
    [
        ("Ada Moss", ["ada moss."], "en", 1.0),
        ("the mill of Ada Moss", ["Ada Moss"], "en", 2 * (2 / 4) * 1 / (2 / 4 + 1)),  # mill of Ada Moss
        ("Ada", ["Ben"], "en", 0.0),
        ("six six", ["six"], "en", 2 / 3),
        ("Ada", ["Ben Ada", "Ada Lee Moss Fay"], "en", 2 / 3),  # the best of 2/3 and 2/5
        ("艾达莫斯", ["艾达"], "zh", 2 / 3),
        ("東京都", ["京都"], "ja", 4 / 5),
        ("東京都", ["京都"], "ko", 0.0),
        ("a", ["the"], "en", 1.0),  # both are empty
        ("a", ["mill"], "en", 0.0),
        (None, ["Ada"], "en", 0.0),
        ("Ada", [], "en", 0.0),
    ],
)
def test_token_f1_by_hand(answer: str | None, gold: list[str], language: str, f1: float) -> None:
    assert metrics.answer_f1(answer, gold, language) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "gold", "language", "contains"),
    [
        ("It was built by Ada Moss in 1812.", ["Ada Moss"], "en", 1.0),
        ("Ada Lee Moss", ["Ada Moss"], "en", 0.0),
        ("Adamant", ["Ada"], "en", 0.0),
        ("Moss", ["Ada Moss"], "en", 0.0),
        ("in 1812", ["1813", "1812"], "en", 1.0),
        ("是艾达莫斯建造的", ["艾达"], "zh", 1.0),
        ("東京", ["京東"], "ja", 0.0),
        ("anything", ["the"], "en", 0.0),
        ("", ["Ada"], "en", 0.0),
        (None, ["Ada"], "en", 0.0),
        ("Ada", [], "en", 0.0),
    ],
)
def test_an_answer_holds_an_accepted_one_when_its_tokens_stand_together(
    answer: str | None, gold: list[str], language: str, contains: float
) -> None:
    assert metrics.answer_contains(answer, gold, language) == contains


def squad_f1(prediction: str, truth: str) -> float:
    """As published (Rajpurkar et al., 2016; version 2.0 of 2018 for empty answers)."""

    def normalised(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    given, gold = normalised(prediction), normalised(truth)
    if not given or not gold:
        return float(given == gold)
    same = sum((Counter(given) & Counter(gold)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(gold)
    return 2 * precision * recall / (precision + recall)


_words = st.sampled_from(
    ["a", "An", "THE", "the-", "mill", "Mill,", "mills", "Ada", "ada's", "1812", "1,812", "$5", "U.S.", "theory", "-", "x<y", "~"]
)
_answers = st.one_of(
    st.lists(_words, max_size=7).map(" ".join),
    st.text(string.ascii_letters + string.digits + string.punctuation + " \t\n", max_size=20),
)


@settings(max_examples=500)
@given(_answers, _answers)
def test_english_f1_is_that_of_squad(answer: str, gold: str) -> None:
    assert metrics.answer_f1(answer, [gold], "en") == pytest.approx(squad_f1(answer, gold))


@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["en", "de", "zh", "ar"]))
def test_f1_is_symmetric_from_0_to_1_and_1_for_the_answer_itself(answer: str, gold: str, language: str) -> None:
    f1 = metrics.answer_f1(answer, [gold], language)
    assert 0 <= f1 <= 1
    assert f1 == pytest.approx(metrics.answer_f1(gold, [answer], language))
    assert metrics.answer_f1(answer, [answer], language) == 1

"""What a reply is worth: citation metrics of one question, and answer overlap (paper 4.3; SQuAD, Rajpurkar et al. 2016)."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from aloftrag.languages import NO_WORD_SPACES

_ENGLISH_ARTICLES = {"a", "an", "the"}


def citation_accuracy(cited: Sequence[int] | None, right: Collection[int]) -> float:
    """The paper's: 1 when a right text is among the cited. A reply that cites everything gets 1 too.

    ``right``: the positive, and texts that are known to answer the question too.
    """
    return float(any(position in right for position in cited or []))


def citation_exact(cited: Sequence[int] | None, right: Collection[int]) -> float:
    """1 when right texts and nothing else are cited."""
    return float(bool(cited) and all(position in right for position in cited or []))


def citation_precision(cited: Sequence[int] | None, right: Collection[int]) -> float:
    """The share of the cited that is right; 0 with nothing cited."""
    return sum(position in right for position in cited) / len(cited) if cited else 0.0


def f1(precision: float, recall: float) -> float:
    """The harmonic mean; 0 where both are."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def answer_tokens(text: str, language: str) -> list[str]:
    """An answer as it is compared: case folded, without marks; without articles in English; characters where no spaces part words.

    For English this is SQuAD's normalisation.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(character for character in text if not unicodedata.category(character).startswith(("P", "S")))
    if language in NO_WORD_SPACES:
        return re.findall(r"\S", text)
    words = text.split()
    return [word for word in words if word not in _ENGLISH_ARTICLES] if language == "en" else words


def answer_f1(answer: str | None, gold_answers: Sequence[str], language: str) -> float:
    """The best token F1 of an answer against the accepted ones; 0 without an answer."""
    if answer is None:
        return 0.0
    given = answer_tokens(answer, language)
    return max((_f1(given, answer_tokens(gold, language)) for gold in gold_answers), default=0.0)


def answer_contains(answer: str | None, gold_answers: Sequence[str], language: str) -> float:
    """1 when the tokens of an accepted answer stand together in the answer."""
    if answer is None:
        return 0.0
    given = answer_tokens(answer, language)
    return float(any(_holds(given, answer_tokens(gold, language)) for gold in gold_answers))


def _f1(given: list[str], gold: list[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    common = sum((Counter(given) & Counter(gold)).values())
    return 2 * common / (len(given) + len(gold))


def _holds(given: list[str], gold: list[str]) -> bool:
    return bool(gold) and any(given[start : start + len(gold)] == gold for start in range(len(given) - len(gold) + 1))

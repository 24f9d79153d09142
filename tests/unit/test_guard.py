"""Which of a question's nearest texts become its negatives."""

import numpy as np
import pytest

from aloftrag.retrieval import guard
from aloftrag.retrieval.guard import COPY_OF_NEGATIVE, COPY_OF_POSITIVE, COPY_OF_SKIPPED, TOO_SIMILAR, Choice, Rules

IDS = np.array(list("abcdef"))
SIMILARITIES = np.array([0.9, 0.8, 0.76, 0.7, 0.5, 0.4])


@pytest.mark.parametrize(
    ("margin", "kept", "skipped"),
    [
        (None, [0, 2], []),  # b is the question's own
        (0.0, [2, 3], [0]),  # a is more similar than b
        (0.05, [2, 3], [0]),  # 0.76 is just what 0.8 less 5 % allows
        (0.051, [3, 4], [0, 2]),
        (0.5, [5], [0, 2, 3, 4]),  # it falls short, and everything that was skipped is named
    ],
)
def test_what_is_nearer_than_the_margin_allows_is_replaced_by_what_comes_next(
    margin: float | None, kept: list[int], skipped: list[int]
) -> None:
    for clusters in ({}, {"x": "x", "y": "x"}):  # the quick way and the other one
        choice = guard.choose(IDS, SIMILARITIES, "b", 0.8, Rules(2, margin, clusters))
        assert choice == Choice(kept, [(place, TOO_SIMILAR) for place in skipped])


@pytest.mark.parametrize(("margin", "kept"), [(0.0, [1, 2]), (0.5, [2, 3]), (1.0, [3])])
def test_with_negative_similarities_a_larger_margin_skips_more(margin: float, kept: list[int]) -> None:
    # The positive at -0.2: the margins allow up to -0.2, -0.3, -0.4.
    similarities = np.array([-0.1, -0.25, -0.35, -0.45])
    assert guard.choose(np.array(list("abcd")), similarities, "own", -0.2, Rules(2, margin)).kept == kept


def test_no_two_of_a_cluster_stand_together_and_none_of_the_positives() -> None:
    clusters = {"a": "1", "b": "1", "c": "2", "e": "2", "f": "1"}
    choice = guard.choose(IDS, SIMILARITIES, "b", 0.8, Rules(3, None, clusters))
    assert choice == Choice([2, 3], [(0, COPY_OF_POSITIVE), (4, COPY_OF_NEGATIVE), (5, COPY_OF_POSITIVE)])
    # What a skipped text may answer, its copy may answer too.
    choice = guard.choose(IDS, SIMILARITIES, "x", 0.8, Rules(2, 0.05, {"a": "1", "c": "1"}))
    assert choice == Choice([3, 4], [(0, TOO_SIMILAR), (1, TOO_SIMILAR), (2, COPY_OF_SKIPPED)])


def test_what_comes_after_the_last_negative_is_not_looked_at() -> None:
    assert guard.choose(IDS, SIMILARITIES, "f", 0.4, Rules(1)) == Choice([0], [])
    assert guard.choose(IDS, SIMILARITIES, "b", 0.85, Rules(1, 0.0)) == Choice([2], [(0, TOO_SIMILAR)])


def test_the_margin_picked_skips_a_tenth_of_the_neighbours() -> None:
    random = np.random.default_rng(0)
    positive = random.uniform(0.4, 0.9, 500)
    similarities = positive[:, None] * (1 - random.uniform(0.05, 0.6, (500, 9)))
    ids = np.array([[f"t{row}-{place}" for place in range(9)] for row in range(500)])
    own = np.array(["own"] * 500)
    margin = guard.auto_margin(guard.gaps(ids, similarities, own, positive))
    kept = [len(guard.choose(ids[row], similarities[row], "own", positive[row], Rules(9, margin)).kept) for row in range(500)]
    assert sum(kept) / 4500 == pytest.approx(0.9, abs=0.001)


def test_the_margin_picked_is_never_negative_and_sees_neither_the_positive_nor_empty_places() -> None:
    ids = np.array([["near", "own", ""]])
    gaps = guard.gaps(ids, np.array([[0.6, 0.5, -np.inf]]), np.array(["own"]), np.array([0.5]))
    assert gaps == pytest.approx([-0.2])
    assert guard.auto_margin(gaps) == 0.0
    assert guard.auto_margin(np.empty(0)) == 0.0

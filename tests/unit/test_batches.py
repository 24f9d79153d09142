import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloftrag.training.batches import Batching, batches, collate, share, steps_of_epoch
from aloftrag.training.rows import ANSWER, CITATION, NONE, TrainingRow
from aloftrag.training.worker import Worker

_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=400)
_seeds = st.integers(0, 5)
BOTH: tuple[Batching, ...] = ("by-length", "packed")


@given(_lengths, st.integers(1, 7), _seeds, _seeds)
def test_every_row_is_in_exactly_one_step(lengths: list[int], rows_per_step: int, seed: int, epoch: int) -> None:
    steps = list(steps_of_epoch(lengths, rows_per_step, seed, epoch))
    assert sorted(number for step in steps for number in step) == list(range(len(lengths)))
    assert sorted(map(len, steps))[1:] == [rows_per_step] * (len(steps) - 1)
    assert all(1 <= len(step) <= rows_per_step for step in steps)


@given(_lengths, st.integers(1, 7), _seeds)
def test_every_call_gives_the_same_steps(lengths: list[int], rows_per_step: int, seed: int) -> None:
    first = list(steps_of_epoch(lengths, rows_per_step, seed, epoch=1))
    random.seed(len(lengths))
    assert list(steps_of_epoch(lengths, rows_per_step, seed, epoch=1)) == first


def test_another_seed_and_another_epoch_give_another_order() -> None:
    orders = [list(steps_of_epoch([9] * 50, 2, seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(first != second for number, first in enumerate(orders) for second in orders[:number])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=100), st.integers(2, 7))
def test_the_rows_of_a_step_are_of_similar_length(lengths: list[int], rows_per_step: int) -> None:
    ranges = sorted(
        (min(lengths[row] for row in step), max(lengths[row] for row in step)) for step in steps_of_epoch(lengths, rows_per_step, 0, 0)
    )
    assert all(longest <= next_shortest for (_, longest), (next_shortest, _) in pairwise(ranges))


def test_short_rows_do_not_all_come_first() -> None:
    steps = list(steps_of_epoch(list(range(200)), 4, seed=0, epoch=0))
    assert [min(step) for step in steps] != sorted(min(step) for step in steps)


@given(_lengths, st.integers(1, 9))
def test_workers_share_a_step_evenly_and_without_a_rest(lengths: list[int], workers: int) -> None:
    rows = list(range(0, len(lengths), 2))
    shares = [share(rows, lengths, Worker(rank, workers)) for rank in range(workers)]
    assert sorted(row for own in shares for row in own) == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [sum(lengths[row] for row in own) for own in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize("batching", BOTH)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=40), max_tokens=st.integers(64, 500))
def test_batches_hold_every_row_once_within_the_token_limit(batching: Batching, lengths: list[int], max_tokens: int) -> None:
    rows = list(range(len(lengths)))
    found = batches(rows, lengths, max_tokens, batching)
    assert sorted(row for batch in found for row in batch) == rows
    for batch in found:
        own = [lengths[row] for row in batch]
        assert len(batch) == 1 or (sum(own) if batching == "packed" else len(own) * max(own)) <= max_tokens


@given(st.lists(st.integers(1, 300), min_size=1, max_size=100))
def test_batches_by_length_are_padded_by_a_twentieth_at_most(lengths: list[int]) -> None:
    for batch in batches(range(len(lengths)), lengths, 10_000, "by-length"):
        own = [lengths[row] for row in batch]
        places = len(own) * max(own)
        assert 20 * (places - sum(own)) <= places


@pytest.mark.parametrize(
    ("batching", "lengths", "expected"),
    [
        ("by-length", [100, 40, 50, 50], [[40], [50, 50], [100]]),  # 40 beside 50 is too much padding
        ("by-length", [100, 99, 98, 97], [[97, 98], [99, 100]]),  # three of them do not fit
        ("packed", [100, 40, 50, 50, 110], [[50, 40, 110], [100, 50]]),  # 110 leaves 90: 50 fits it best, and then 40
    ],
)
def test_batches_by_hand(batching: Batching, lengths: list[int], expected: list[list[int]]) -> None:
    found = batches(range(len(lengths)), lengths, 200, batching)
    assert sorted(sorted(lengths[row] for row in batch) for batch in found) == sorted(sorted(batch) for batch in expected)


ROWS = [TrainingRow("a", [7, 8], [NONE, ANSWER]), TrainingRow("b", [9, 9, 5], [NONE, CITATION, ANSWER])]


def test_a_batch_is_padded_on_the_right_and_padding_is_no_target() -> None:
    batch = collate(ROWS, "by-length")
    assert batch.token_ids.tolist() == [[7, 8, 0], [9, 9, 5]]
    assert batch.targets.tolist() == [[NONE, ANSWER, NONE], [NONE, CITATION, ANSWER]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert collate([ROWS[1], ROWS[1]], "by-length").attention_mask is None


def test_packed_rows_follow_each_other_and_each_begins_at_position_zero() -> None:
    batch = collate(ROWS, "packed")
    assert batch.token_ids.tolist() == [[7, 8, 9, 9, 5]]
    assert batch.targets.tolist() == [[NONE, ANSWER, NONE, CITATION, ANSWER]]
    assert batch.attention_mask is None
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2]]

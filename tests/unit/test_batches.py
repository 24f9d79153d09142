import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aloftrag.training.batches import collate, micro_batches, steps_of_epoch
from aloftrag.training.rows import ANSWER, CITATION, NONE, TrainingRow

_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=400)
_seeds = st.integers(0, 5)


def row(length: int, name: str = "r") -> TrainingRow:
    return TrainingRow(name, list(range(1, length + 1)), [ANSWER] * length)


@given(_lengths, st.integers(1, 7), _seeds, _seeds)
def test_every_row_is_in_exactly_one_step(lengths: list[int], rows_per_step: int, seed: int, epoch: int) -> None:
    steps = steps_of_epoch(lengths, rows_per_step, seed, epoch)
    assert sorted(number for step in steps for number in step) == list(range(len(lengths)))
    assert sorted(map(len, steps))[1:] == [rows_per_step] * (len(steps) - 1)
    assert all(1 <= len(step) <= rows_per_step for step in steps)


@given(_lengths, st.integers(1, 7), _seeds)
def test_every_call_gives_the_same_steps(lengths: list[int], rows_per_step: int, seed: int) -> None:
    first = steps_of_epoch(lengths, rows_per_step, seed, epoch=1)
    random.seed(len(lengths))
    assert steps_of_epoch(lengths, rows_per_step, seed, epoch=1) == first


def test_another_seed_and_another_epoch_give_another_order() -> None:
    orders = [steps_of_epoch([9] * 50, 2, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(first != second for number, first in enumerate(orders) for second in orders[:number])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=100), st.integers(2, 7))
def test_the_rows_of_a_step_are_of_similar_length(lengths: list[int], rows_per_step: int) -> None:
    ranges = sorted(
        (min(lengths[row] for row in step), max(lengths[row] for row in step)) for step in steps_of_epoch(lengths, rows_per_step, 0, 0)
    )
    assert all(longest <= next_shortest for (_, longest), (next_shortest, _) in pairwise(ranges))


def test_short_rows_do_not_all_come_first() -> None:
    steps = steps_of_epoch(list(range(200)), 4, seed=0, epoch=0)
    assert [min(step) for step in steps] != sorted(min(step) for step in steps)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(64, 500))
def test_micro_batches_hold_every_row_once_within_the_token_limit(lengths: list[int], max_tokens: int) -> None:
    rows = [row(length, str(number)) for number, length in enumerate(lengths)]
    batches = micro_batches(rows, max_tokens)
    assert sorted(int(found.chat_id) for batch in batches for found in batch) == list(range(len(rows)))
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= max_tokens for batch in batches)


def test_rows_share_a_batch_where_the_padding_fits() -> None:
    assert [[len(found) for found in batch] for batch in micro_batches([row(10), row(4), row(5), row(5)], max_tokens=15)] == [
        [4, 5, 5],
        [10],
    ]


def test_a_batch_is_padded_on_the_right_and_padding_is_no_target() -> None:
    batch = collate([TrainingRow("a", [7, 8], [NONE, ANSWER]), TrainingRow("b", [9, 9, 5], [NONE, CITATION, ANSWER])], pad_id=3)
    assert batch.token_ids.tolist() == [[7, 8, 3], [9, 9, 5]]
    assert batch.targets.tolist() == [[NONE, ANSWER, NONE], [NONE, CITATION, ANSWER]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]

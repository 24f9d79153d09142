import random

import pytest

from aloftrag import seeds


def test_a_rows_number_is_the_same_in_every_process_and_version() -> None:
    # Fixed for good: a run that was begun before an update must go on with the same rows after it.
    assert seeds.draw(0, "held_out", "00ff") == pytest.approx(0.46273860836703196, abs=1e-15)
    assert seeds.generator(0, "chat", "00ff").sample(range(100), 5) == [46, 24, 21, 16, 47]


def test_neither_order_nor_other_draws_change_a_rows_number() -> None:
    ids = [f"{number:032x}" for number in range(100)]
    forward = {row: seeds.draw(3, "validation", row) for row in ids}
    random.seed(1)
    assert {row: seeds.draw(3, "validation", row) for row in reversed(ids)} == forward


def test_seed_purpose_and_row_each_change_the_number() -> None:
    numbers = {seeds.draw(seed, purpose, row) for seed in (0, 1) for purpose in ("a", "b") for row in ("x", "y")}
    assert len(numbers) == 8


def test_numbers_are_spread_evenly_from_0_to_below_1() -> None:
    numbers = [seeds.draw(0, "held_out", f"{number:032x}") for number in range(5000)]
    tenths = [sum(tenth / 10 <= number < (tenth + 1) / 10 for number in numbers) for tenth in range(10)]
    assert sum(tenths) == 5000
    assert all(400 < count < 600 for count in tenths)


def test_what_is_drawn_for_two_purposes_is_unrelated() -> None:
    ids = [f"{number:032x}" for number in range(5000)]
    both = sum(seeds.draw(0, "held_out", row) < 0.1 and seeds.draw(0, "validation", row) < 0.1 for row in ids)
    assert 25 < both < 80  # 50 are expected

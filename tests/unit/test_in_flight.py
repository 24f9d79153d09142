import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloftrag.engine.in_flight import InFlightLog, halves
from aloftrag.engine.pool import MOST_DEATHS

IDS = [f"t{number}" for number in range(8)]


def test_a_first_attempt_suspects_nobody(tmp_path: Path) -> None:
    log = InFlightLog(tmp_path, IDS)
    assert (log.suspects, log.culprits) == ([], set())


def test_what_was_asked_and_not_answered_at_a_death_is_suspect_and_nothing_else(tmp_path: Path) -> None:
    log = InFlightLog(tmp_path, IDS)
    for row_id in IDS[:5]:
        log.asked([row_id], alone=False)
    log.answered("t1")
    again = InFlightLog(tmp_path, IDS)
    assert again.suspects == [["t0", "t2", "t3", "t4"]]
    assert again.culprits == set()


def test_one_row_in_flight_beside_those_of_other_blocks_is_not_yet_a_culprit(tmp_path: Path) -> None:
    InFlightLog(tmp_path, IDS).asked(["t3"], alone=False)
    again = InFlightLog(tmp_path, IDS)
    assert (again.suspects, again.culprits) == ([["t3"]], set())
    again.asked(["t3"], alone=True)
    third = InFlightLog(tmp_path, IDS)
    assert (third.suspects, third.culprits) == ([["t3"]], set())  # a node may have died
    third.asked(["t3"], alone=True)
    last = InFlightLog(tmp_path, IDS)
    assert (last.suspects, last.culprits) == ([], {"t3"})
    assert InFlightLog(tmp_path, IDS).culprits == {"t3"}  # however often it is opened


def test_deaths_are_counted_from_the_last_answer_on(tmp_path: Path) -> None:
    for deaths in range(3):
        log = InFlightLog(tmp_path, IDS)
        assert log.deaths == deaths
        log.asked(IDS[:2], alone=False)
    log.answered("t0")
    again = InFlightLog(tmp_path, IDS)
    assert (again.suspects, again.deaths) == ([["t1"]], 1)


def test_a_half_that_dies_is_a_group_of_its_own_and_one_that_answers_is_innocent(tmp_path: Path) -> None:
    InFlightLog(tmp_path, IDS).asked(IDS[:6], alone=False)
    second = InFlightLog(tmp_path, IDS)
    second.asked(["t0", "t1", "t2"], alone=True)
    for row_id in ("t0", "t1", "t2"):
        second.answered(row_id)
    second.asked(["t3", "t4", "t5"], alone=True)
    second.answered("t5")
    assert InFlightLog(tmp_path, IDS).suspects == [["t3", "t4"]]


def test_a_line_that_a_death_cut_off_is_as_if_not_written(tmp_path: Path) -> None:
    InFlightLog(tmp_path, IDS).asked(["t0"], alone=False)
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write('{"event": "answe')
    for _ in range(3):
        assert InFlightLog(tmp_path, IDS).suspects == [["t0"]]


def test_a_block_that_ended_leaves_nothing_and_blocks_do_not_mix(tmp_path: Path) -> None:
    log = InFlightLog(tmp_path, IDS)
    log.asked(IDS, alone=False)
    assert InFlightLog(tmp_path, IDS[:4]).suspects == []
    log.close()
    assert InFlightLog(tmp_path, IDS).suspects == []


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_halves_are_the_whole(size: int) -> None:
    parts = halves(list(range(size)))  # type: ignore[arg-type]
    assert [row for part in parts for row in part] == list(range(size))
    assert len(parts) == min(size, 2)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(count=st.integers(1, 64), poison=st.sets(st.integers(0, 63), max_size=3), seed=st.integers(0, 99))
def test_exactly_the_rows_that_kill_the_engine_are_set_aside(
    tmp_path_factory: pytest.TempPathFactory, count: int, poison: set[int], seed: int
) -> None:
    """The attempts of an actor, with an engine that dies as soon as a poisonous row is asked."""
    folder = tmp_path_factory.mktemp("logs")
    ids = [str(number) for number in range(count)]
    order = random.Random(seed)

    def attempt() -> set[str] | None:
        """The answered rows, None when the engine died."""
        log = InFlightLog(folder, ids)
        assert log.deaths < MOST_DEATHS
        answered: set[str] = set()

        def ask(group: list[str], alone: bool) -> bool:
            log.asked(group, alone)
            if any(int(row_id) in poison for row_id in group):
                return False
            for row_id in group:
                log.answered(row_id)
            answered.update(group)
            return True

        suspects = {row_id for group in log.suspects for row_id in group}
        others = [row_id for row_id in ids if row_id not in suspects | log.culprits]
        order.shuffle(others)
        if others and not ask(others, alone=False):
            return None
        for group in log.suspects:
            for half in halves(group):
                if not ask(list(half), alone=True):
                    return None
        return answered

    attempts = 1
    while (answered := attempt()) is None:
        attempts += 1
        assert attempts < 50
    assert answered == {row_id for row_id in ids if int(row_id) not in poison}

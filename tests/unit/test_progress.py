"""How far a step has come, told from its work folder alone."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest

from aloftrag import artifacts, progress, resumable
from aloftrag.engine.in_flight import InFlightLog

HOUR_AGO = 3600.0


def begun(folder: Path, total: int, before: int = 0, ago: float = HOUR_AGO) -> None:
    artifacts.write_json(folder / resumable.BEGUN, {"total": total, "before": before, "at": time.time() - ago})


def committed(folder: Path, rows: int, name: str = "a") -> None:
    artifacts.write_table(pa.table({"id": [f"{name}-{n}" for n in range(rows)]}), folder / "slice-00000" / f"{name}.parquet")


def test_nothing_is_known_of_a_step_that_has_only_begun(tmp_path: Path) -> None:
    assert progress.of_work(tmp_path) is None
    assert progress.of_work(tmp_path / "missing") is None


def test_committed_rows_give_the_rate_and_the_time_left(tmp_path: Path) -> None:
    begun(tmp_path / "checkpoints", 100_000, before=2_000)
    committed(tmp_path / "checkpoints", 20_000)
    committed(tmp_path / "checkpoints", 500, f"b{resumable.PENDING.removesuffix('.parquet')}")  # still being written
    found = progress.of_work(tmp_path)
    assert found is not None
    assert (found.done, found.total, found.per_second) == (20_000, 100_000, pytest.approx(5.0, rel=0.01))  # 18,000 since, in an hour
    assert str(found) == "20,000 of 100,000 rows, 5.0 a second, 4 h 27 min left"


def test_rows_before_a_kill_say_nothing_of_the_rate_after_it(tmp_path: Path) -> None:
    begun(tmp_path / "checkpoints", 50, before=20)
    committed(tmp_path / "checkpoints", 20)
    assert str(progress.of_work(tmp_path)) == "20 of 50 rows"


def test_rows_that_the_engine_has_answered_count_before_their_block_ends(tmp_path: Path) -> None:
    begun(tmp_path / "replies-base-checkpoints", 300)
    log = InFlightLog(tmp_path / "replies-base-in-flight" / "start", ["a", "b", "c"])
    log.asked(["a"], alone=False)
    log.asked(["b"], alone=False)
    log.answered("a")
    (tmp_path / "replies-base-in-flight" / "start" / "cut.jsonl").write_text('{"event": "asked", "ids": ["z"], "alone"')
    assert str(progress.of_work(tmp_path)) == "replies-base: 1 of 300 rows, 3600.0 s each, 12 d 11 h left"


def test_the_part_that_began_last_is_told(tmp_path: Path) -> None:
    begun(tmp_path / "replies-adapter-checkpoints", 7, ago=10)
    begun(tmp_path / "replies-base-checkpoints", 8)
    assert str(progress.of_work(tmp_path)) == "replies-adapter: 0 of 7 rows"


@pytest.mark.parametrize("letters", [0, 5000])  # of which a thirtieth part is more than is looked at
def test_training_is_told_by_its_steps(tmp_path: Path, letters: int) -> None:
    lines = [{"step": step, "steps": 50, "loss": 1.0, "seconds": 9.0 if step == 1 else 2.0, "more": "x" * letters} for step in range(1, 31)]
    lines.insert(20, {"step": 20, "validation_loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 31, "st')
    assert str(progress.of_work(tmp_path)) == "30 of 50 steps, 2.0 s each, 40 s left"


def test_it_is_told_while_the_step_runs_and_not_after(tmp_path: Path) -> None:
    begun(tmp_path / "checkpoints", 5)
    said: list[str] = []
    with progress.repeatedly(lambda: said.append(str(progress.of_work(tmp_path))), every=0.01):
        deadline = time.monotonic() + 20
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    count = len(said)
    assert count >= 2
    time.sleep(0.05)
    assert len(said) == count
    assert set(said) == {"0 of 5 rows"}

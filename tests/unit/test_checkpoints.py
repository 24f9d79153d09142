from collections.abc import Callable
from pathlib import Path

import pytest

from aloftrag.training import checkpoints
from aloftrag.training.worker import Worker


def state(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state").write_text(content)

    return write


def newest_state(folder: Path) -> str:
    newest = checkpoints.newest(folder)
    assert newest is not None
    return (newest / "state").read_text()


def test_the_newest_checkpoint_is_that_of_the_highest_step_and_two_are_kept(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for step in (9, 10, 100):
        checkpoints.save(tmp_path, step, state(str(step)), Worker())
    assert newest_state(tmp_path) == "100"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_that_is_not_whole_is_none_and_is_removed_by_the_next(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, state("1"), Worker())

    def killed(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, 2, killed, Worker())
    assert newest_state(tmp_path) == "1"
    checkpoints.save(tmp_path, 3, state("3"), Worker())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]


def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for content in ("first", "again"):
        checkpoints.save(tmp_path, 5, state(content), Worker())
    assert newest_state(tmp_path) == "again"

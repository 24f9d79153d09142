"""Checkpoints of a training run: folders named by their step, each whole or not there.

They are our own and not Ray Train's, whose list of them is not written in one piece: a driver killed at that moment could not go on.
"""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from aloftrag.training.worker import Worker

_KEPT = 2


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def save(folder: Path, step: int, write: Callable[[Path], None], worker: Worker) -> None:
    """A checkpoint of what ``write(folder)`` writes; called by all workers, each of which may write files of its own."""
    replace(folder / f"step-{step:09d}", write, worker)
    if worker.rank == 0:
        for old in sorted(folder.glob("step-*"))[:-_KEPT]:
            shutil.rmtree(old)


def replace(folder: Path, write: Callable[[Path], None], worker: Worker) -> None:
    """Make ``folder`` of what all workers write, in place of what was there; a reader sees the whole of it or none."""
    unfinished = folder.with_name(f"unfinished-{worker.of_first(uuid.uuid4().hex)}")
    unfinished.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    worker.wait()
    if worker.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        for left_over in folder.parent.glob("unfinished-*"):  # of workers that were killed
            shutil.rmtree(left_over)

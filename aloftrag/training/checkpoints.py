"""Checkpoints of a training run: folders named by their step, each whole or not there.

They are our own and not Ray Train's, whose list of them is not written in one piece: a driver killed at that moment could not go on.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

from aloftrag import storage
from aloftrag.training.worker import Worker

_KEPT = 2


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder."""
    found = sorted(path for path in folder.glob("step-*") if storage.is_whole(path))
    return found[-1] if found else None


def save(folder: Path, step: int, write: Callable[[Path], None], worker: Worker) -> None:
    """A checkpoint of what ``write(folder)`` writes; called by all workers, each of which may write files of its own."""
    replace(folder / f"step-{step:09d}", write, worker)
    if worker.rank == 0:
        for old in sorted(folder.glob("step-*"))[:-_KEPT]:
            storage.remove(old)


def replace(folder: Path, write: Callable[[Path], None], worker: Worker) -> None:
    """Make ``folder`` of what all workers write, in place of what was there; a reader sees the whole of it or none."""
    name = f"unfinished-{worker.of_first(uuid.uuid4().hex)}"
    if not storage.is_local(folder):
        _upload(folder, name, write, worker)
        return
    unfinished = folder.with_name(name)
    unfinished.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    worker.wait()
    if worker.rank == 0:
        storage.flush(unfinished)
        storage.remove(folder)
        unfinished.rename(folder)
        for left_over in folder.parent.glob("unfinished-*"):  # of workers that were killed
            storage.remove(left_over)


def _upload(folder: Path, name: str, write: Callable[[Path], None], worker: Worker) -> None:
    """As ``replace`` in an object store: each worker writes on its machine's disk and uploads its files."""
    if worker.rank == 0:
        storage.remove(folder)
    worker.wait()
    unfinished = storage.scratch(folder).with_name(f"{name}-{worker.rank}")
    unfinished.mkdir(parents=True)
    write(unfinished)
    storage.upload(unfinished, folder)
    storage.remove(unfinished)
    worker.wait()
    if worker.rank == 0:
        storage.mark_whole(folder)

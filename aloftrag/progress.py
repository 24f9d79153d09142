"""How far an unfinished step has come, from what lies in its work folder: any process can tell, also after a kill.

Where a step maps rows (``resumable.map_rows``), the committed ones are counted and, where an engine is asked, those that it has
answered since. Training has its metrics.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aloftrag import artifacts, resumable, storage
from aloftrag.errors import outages
from aloftrag.training.loop import METRICS

_CHECKPOINTS, _IN_FLIGHT = "checkpoints", "in-flight"  # endings of the folders' names
_RECENT_STEPS = 20  # of the optimiser, whose pace tells the time left
_LAST_BYTES = 2**16  # of the metrics, of which a training of days has very many: in these there are more steps than that


@dataclass(frozen=True)
class Progress:
    """What is done of what, and how fast; ``per_second`` is None before anything is known of it."""

    part: str  # of the step, such as the replies of one variant; empty where there is one
    done: int
    total: int
    unit: str
    per_second: float | None

    def __str__(self) -> str:
        """One line: what is done, the rate, the time left."""
        said = f"{self.part + ': ' if self.part else ''}{self.done:,} of {self.total:,} {self.unit}"
        if not self.per_second:
            return said
        rate = f"{self.per_second:.1f} a second" if self.per_second >= 1 else f"{1 / self.per_second:.1f} s each"
        return f"{said}, {rate}, {duration((self.total - self.done) / self.per_second)} left"


def duration(seconds: float) -> str:
    """Seconds as one reads them.

    >>> [duration(seconds) for seconds in (8.6, 125, 8000, 200_000)]
    ['9 s', '2 min', '2 h 13 min', '2 d 7 h']
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} d {minutes % 1440 // 60} h"


def of_work(work: Path) -> Progress | None:
    """The progress of the step whose work folder this is; None where nothing is known yet, or a file was removed while it was read."""
    try:
        return _of_work(work)
    except FileNotFoundError:
        return None


def _of_work(work: Path) -> Progress | None:
    if (work / METRICS).is_file():
        return _of_training(work / METRICS)
    begun = {path.parent: artifacts.read_json(path) for path in work.glob(f"*{_CHECKPOINTS}/{resumable.BEGUN}")}
    if not begun:
        return None
    newest = max(begun, key=lambda folder: begun[folder]["at"])
    noted, done = begun[newest], resumable.committed_rows(newest) + _answered(newest)
    since = done - noted["before"]
    return Progress(
        newest.name.removesuffix(_CHECKPOINTS).strip("-").replace("_", " "),
        done,
        noted["total"],
        "rows",
        since / max(1.0, time.time() - noted["at"]) if since > 0 else None,
    )


@contextmanager
def repeatedly(action: Callable[[], None], every: float) -> Iterator[None]:
    """While the body runs, do something every so many seconds; where the storage does not answer, the next time."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            with contextlib.suppress(*outages()):
                action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _answered(checkpoints: Path) -> int:
    """Rows of blocks that are not committed yet, for which the engine has answered."""
    logs = storage.scratch(checkpoints.with_name(checkpoints.name.removesuffix(_CHECKPOINTS) + _IN_FLIGHT)).glob("*/*.jsonl")
    return sum(len({row_id for event in _whole_lines(log) if event["event"] == "answered" for row_id in event["ids"]}) for log in logs)


def _of_training(metrics: Path) -> Progress | None:
    steps = [line for line in _whole_lines(metrics, _LAST_BYTES) if "loss" in line]
    if not steps:
        return None
    seconds = [line["seconds"] for line in steps[-_RECENT_STEPS:]]
    return Progress("", steps[-1]["step"], steps[-1]["steps"], "steps", len(seconds) / max(1e-3, sum(seconds)))


def _whole_lines(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The objects of a file that is being appended to, or of its ``last`` bytes."""
    with path.open("rb") as file:
        start = 0 if last is None else max(0, file.seek(0, os.SEEK_END) - last)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]

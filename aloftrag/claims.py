"""Who works on a run, and whose turn it is: claims in a folder of the storage that all machines share.

A claim is a file that its process writes again every ``BEAT_SECONDS``. One that another process sees unchanged for ``STALE_SECONDS``,
by its own clock, is that of a dead process; of one that ran on the same machine that is known at once. There is no lock to be left
behind, and nothing that a storage without renames or appends lacks.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aloftrag import artifacts, progress, storage
from aloftrag.errors import RunError, outages

BEAT_SECONDS, STALE_SECONDS = 15, 90
_LOOK_SECONDS, _LOOK_SECONDS_FOR_A_TURN = 1, 5
_LOOKS = 2  # at a living claim before it is believed: of two that came at the same moment, one steps back
_LOST = signal.SIGUSR2  # sent to this process itself; what runs in the background may ignore SIGINT
_READS = 3  # of a file that is being replaced, on NFS


@dataclass(frozen=True)
class Claim:
    """What a claim's file says, and when the storage says that it was written."""

    about: dict[str, Any]  # empty where it cannot be read
    written: float

    @property
    def is_working(self) -> bool:
        """Whether its process works, and does not only wait; of one that cannot be read it is believed."""
        return bool(self.about.get("is_working", True))

    @property
    def is_of_this_machine(self) -> bool:
        """Whether this machine can tell if its process lives."""
        return self.about.get("machine") == _machine()

    @property
    def has_died(self) -> bool:
        """Whether its process is known to be gone."""
        return self.is_of_this_machine and self.about["process_started"] != _process_started(self.about["pid"])

    def __str__(self) -> str:
        return f"process {self.about['pid']} on {self.about['host']}" if self.about else "a process"


@contextmanager
def hold(folder: Path, *, at_most: int = 1, order: str = "", wait: bool = False, say: Callable[[str], None] = print) -> Iterator[None]:
    """Be one of at most so many processes that work in ``folder``, while the body runs.

    Where there are as many already: ``wait`` for a turn, by ``order``; else ``RunError`` as soon as they are known to live. Also a
    ``RunError``, but for a turn: that this process did not show itself for so long that another one took its place.
    """
    claim = _Place(folder, order, is_turn=wait)
    with _interrupted_when_lost(), progress.repeatedly(claim.beat, BEAT_SECONDS):
        try:
            claim.take(at_most, say)
            yield
        except KeyboardInterrupt:
            if claim.is_lost:
                raise RunError(f"{folder}: the storage did not answer for {STALE_SECONDS} s, and another process took over") from None
            raise
        finally:
            claim.give_back()


def working(folder: Path) -> int:
    """How many processes work in ``folder``, as far as is known without taking part."""
    found = [claim for path in folder.glob("*.json") if (claim := _read(path))]
    newest = max((claim.written for claim in found), default=0.0)
    return sum(claim.is_working and not claim.has_died and newest - claim.written <= STALE_SECONDS for claim in found)


@contextmanager
def _interrupted_when_lost() -> Iterator[None]:
    """``_LOST`` is a KeyboardInterrupt, which ends a wait for Ray too; only the main thread can have it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(_LOST, interrupt)
    try:
        yield
    finally:
        signal.signal(_LOST, before)


class _Place:
    """This process's claim, and what it has seen of the others'."""

    def __init__(self, folder: Path, order: str, is_turn: bool):
        self._path = folder / f"{order}-{uuid.uuid4().hex}.json"
        self._holder = threading.get_ident()
        self._is_turn = is_turn
        self._lock = threading.RLock()  # of this thread and the one that beats
        self._is_working = self._is_over = self.is_lost = False
        self._first_seen: dict[str, float] = {}  # of each other claim: when it was written
        self._unchanged_since: dict[str, tuple[float, float]] = {}  # and when it was written last, since which look that is so
        self._looked = self._shown = time.monotonic()  # the beginning of the last whole look, and of the last write that came to an end
        self._write()

    def take(self, at_most: int, say: Callable[[str], None]) -> None:
        """Return when fewer than ``at_most`` others are ahead; where they live, ``RunError``, or for a turn a wait."""
        looks = 0
        while ahead := self._ahead_or_failure(at_most):
            looks += 1
            living = [claim for name, claim in ahead.items() if claim.is_of_this_machine or self._has_changed(name, claim)]
            if not self._is_turn and living and looks >= _LOOKS:
                raise RunError(f"{self._path.parents[1]}: another process is working on this run: {living[0]}")
            if looks == 1 and self._is_turn:
                say(f"waiting for a turn: {len(ahead)} others are ahead")
            elif looks == _LOOKS and not self._is_turn:
                say(f"waiting to see whether {next(iter(ahead.values()))} is alive")
            time.sleep(_LOOK_SECONDS_FOR_A_TURN if self._is_turn else _LOOK_SECONDS)

    def _ahead_or_failure(self, at_most: int) -> dict[str, Claim]:
        try:
            return self._ahead(at_most)
        except outages():
            if not self._is_turn:
                raise
            self._is_working = False  # it had said so, perhaps, and had not looked yet whether others did too
            return {"": Claim({}, 0.0)}  # who waits for hours outlives a storage that fails for a minute

    def _ahead(self, at_most: int) -> dict[str, Claim]:
        """Those that keep this one from working; when there are none, it works."""
        ahead = {name: claim for name, claim in self._others().items() if claim.is_working or name < self._path.name}
        if len(ahead) >= at_most:
            return ahead
        self._is_working = True
        self._write()
        at_work = {name: claim for name, claim in self._others().items() if claim.is_working}
        if len(at_work) < at_most:
            return {}
        self._is_working = False
        self._write()
        return at_work

    def _others(self) -> dict[str, Claim]:
        """The claims of living processes but this one's; those of dead ones are removed."""
        living = {}
        now = time.monotonic()
        if now - self._looked > 2 * BEAT_SECONDS + _LOOK_SECONDS_FOR_A_TURN:
            self._unchanged_since.clear()  # the storage or this machine hung: the others could not show themselves either
        for path in self._path.parent.glob("*.json"):
            if path == self._path or (claim := _read(path)) is None:
                continue
            if self._is_dead(path.name, claim, now):
                if (again := _read(path)) is not None and again.written == claim.written:
                    storage.remove_file(path)
            else:
                living[path.name] = claim
        self._looked = now
        return living

    def _is_dead(self, name: str, claim: Claim, now: float) -> bool:
        if claim.is_of_this_machine:
            return claim.has_died
        written, since = self._unchanged_since.get(name, (None, 0.0))
        if written == claim.written:
            return now - since > STALE_SECONDS
        self._unchanged_since[name] = (claim.written, now)
        return False

    def _has_changed(self, name: str, claim: Claim) -> bool:
        """Whether a claim was written again since this process saw it first."""
        first = self._first_seen.setdefault(name, claim.written)
        return first != claim.written

    def beat(self) -> None:
        """Show that this process is alive; interrupt it when another one has found it dead."""
        with self._lock:
            if self._is_over or self.is_lost:
                return
            if self._is_turn or (self._path.is_file() and not self._was_taken_over()):
                self._write()
                return
            self.is_lost = True
            if self._holder == threading.main_thread().ident:
                signal.pthread_kill(self._holder, _LOST)

    def _was_taken_over(self) -> bool:
        """Whether another process works here: it may have come while this one did not show itself, whose claim it then removed."""
        if time.monotonic() - self._shown <= STALE_SECONDS:
            return False
        return any(claim.is_working for claim in self._others().values())

    def give_back(self) -> None:
        """Work no more."""
        with self._lock, contextlib.suppress(*outages()):  # what ended the work is what is told; others see that this process is gone
            self._is_over = True
            storage.remove_file(self._path)

    def _write(self) -> None:
        with self._lock:
            began = time.monotonic()
            artifacts.write_json(self._path, {**_this_process(), "is_working": self._is_working})
            self._shown = began


def _read(path: Path) -> Claim | None:
    """A claim; None when it was given back meanwhile."""
    written = 0.0
    for attempt in range(_READS):
        try:
            written = path.stat().st_mtime
            return Claim(artifacts.read_json(path), written)
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:  # of a machine that lost its power
            return Claim({}, written)
        except OSError as error:
            if error.errno != errno.ESTALE or attempt == _READS - 1:  # it was replaced while it was read
                raise
    raise AssertionError


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "process_started": _process_started(pid)}


def _machine() -> list[str]:
    """What process numbers are unique in: one start of one machine, in it a container; of one user, as others' processes may be hidden."""
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid"), str(os.getuid())]


def _process_started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None when there is none of this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None

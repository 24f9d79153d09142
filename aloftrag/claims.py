"""Who works on a run, and whose turn it is: claims in a folder of the storage that all machines share.

A claim is a file that its process writes again every ``BEAT_SECONDS``. One that was not written for ``STALE_SECONDS`` is that of a
dead process; of one that ran on this machine that is known at once. Times are those that the storage gives the files, so the
machines' clocks do not matter. There is no lock to be left behind, and nothing that a storage without renames or appends lacks.
"""

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aloftrag import artifacts, progress
from aloftrag.errors import RunError

BEAT_SECONDS, STALE_SECONDS = 15, 90
_LOOK_SECONDS = 1
_LOST = signal.SIGUSR2  # sent to this process itself; what runs in the background may ignore SIGINT

Claim = dict[str, Any]


@contextmanager
def hold(folder: Path, *, at_most: int = 1, order: str = "", wait: bool = False, say: Callable[[str], None] = print) -> Iterator[None]:
    """Be one of at most so many processes that work in ``folder``, while the body runs.

    Where there are as many already: ``wait`` for a turn, by ``order``; else ``RunError`` as soon as they are known to live. Also a
    ``RunError``: that this process did not show itself for so long that another one took its place.
    """
    claim = _Claim(folder, order)
    with _interrupted_when_lost(), progress.repeatedly(claim.beat, BEAT_SECONDS):
        try:
            claim.wait_for_place(at_most, wait, say)
            yield
        except KeyboardInterrupt:
            if claim.is_lost:
                raise RunError(f"{folder}: the storage did not answer for {STALE_SECONDS} s, and another process took over") from None
            raise
        finally:
            claim.give_back()


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


class _Claim:
    def __init__(self, folder: Path, order: str):
        self._path = folder / f"{order}-{uuid.uuid4().hex}.json"
        self._holder = threading.get_ident()
        self._turn = threading.RLock()  # of this thread and the one that beats
        self._is_working = self._is_over = self.is_lost = False
        self._write()

    def wait_for_place(self, at_most: int, wait: bool, say: Callable[[str], None]) -> None:
        """Return when fewer than ``at_most`` others are ahead; raises ``RunError`` when they live, unless it is to ``wait``."""
        first_seen: dict[str, float] = {}
        has_said = False
        while ahead := self._ahead(at_most):
            for name, (claim, written) in ahead.items():
                lives = claim["machine"] == _machine() or first_seen.setdefault(name, written) != written
                if lives and not wait:
                    raise RunError(f"{self._path.parents[1]}: another process is working on this run: {_owner(ahead)}")
            if not has_said:
                say(f"waiting for a turn: {len(ahead)} others are ahead" if wait else f"waiting to see whether {_owner(ahead)} is alive")
                has_said = True
            time.sleep(_LOOK_SECONDS)

    def _ahead(self, at_most: int) -> dict[str, tuple[Claim, float]]:
        """Those that keep this one from working; when there are none, it works."""
        others = self._others()
        ahead = {name: found for name, found in others.items() if found[0]["is_working"] or name < self._path.name}
        if len(ahead) >= at_most:
            return ahead
        self._is_working = True
        self._write()
        working = {name: found for name, found in self._others().items() if found[0]["is_working"]}
        if len(working) < at_most:
            return {}
        self._is_working = False  # two came at the same moment: this one steps back
        self._write()
        return working

    def _others(self) -> dict[str, tuple[Claim, float]]:
        """The claims of living processes but this one's, with the time of their last sign; those of dead ones are removed."""
        self._write()
        now = self._path.stat().st_mtime
        others = {path.name: found for path in self._path.parent.glob("*.json") if path != self._path and (found := _read(path))}
        living = {name: (claim, at) for name, (claim, at) in others.items() if now - at <= STALE_SECONDS and not _has_died(claim)}
        for name in others.keys() - living.keys():
            (self._path.parent / name).unlink(missing_ok=True)
        return living

    def beat(self) -> None:
        """Show that this process is alive; interrupt it when another one has found it dead."""
        with self._turn:
            if self._is_over:
                return
            if self._path.is_file():
                self._write()
            elif not self.is_lost:
                self.is_lost = True
                if self._holder == threading.main_thread().ident:
                    signal.pthread_kill(self._holder, _LOST)

    def give_back(self) -> None:
        """Work no more."""
        with self._turn:
            self._is_over = True
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        with self._turn:
            artifacts.write_json(self._path, {**_this_process(), "is_working": self._is_working})


def working(folder: Path) -> int:
    """How many processes work in ``folder``, as far as is known without taking part."""
    found = [_read(path) for path in folder.glob("*.json")]
    return sum(claim[0]["is_working"] and not _has_died(claim[0]) for claim in found if claim)


def _read(path: Path) -> tuple[Claim, float] | None:
    """A claim and when it was written; None when it was given back meanwhile."""
    try:
        return artifacts.read_json(path), path.stat().st_mtime
    except FileNotFoundError:
        return None


def _this_process() -> Claim:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "process_started": _process_started(pid)}


def _machine() -> list[str]:
    """What process numbers are unique in: one start of one machine, in it a container."""
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]


def _process_started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None when there is none of this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _has_died(claim: Claim) -> bool:
    return claim["machine"] == _machine() and claim["process_started"] != _process_started(claim["pid"])


def _owner(claims: dict[str, tuple[Claim, float]]) -> str:
    claim, _ = next(iter(claims.values()))
    return f"process {claim['pid']} on {claim['host']}"

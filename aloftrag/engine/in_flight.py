"""Which rows an engine was asked about when it died, noted in a file that outlives it.

A block of rows has one log: a line when rows are asked, when one is answered, and when an attempt finds that the one before it
died with rows unanswered. Those are suspects. They are asked again in halves, each half alone in the engine; a row that was
alone in the engine when it died, twice (the first time may have been a node's fault), is the culprit and is set aside. Of 64 rows in
flight with one that kills the engine, that is exactly that one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_DEATHS_OF_A_CULPRIT = 2  # alone in the engine


class InFlightLog:
    """The log of one block of rows; ``ids`` are those of its rows, in order.

    Opening it begins an attempt, and says what is known from those before.
    """

    def __init__(self, folder: Path, ids: Sequence[str]):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{hashlib.blake2b(chr(0).join(ids).encode(), digest_size=16).hexdigest()}.jsonl"
        self.culprits: set[str] = set()
        self.suspects: list[list[str]] = []  # groups that were in flight together at a death
        self.deaths = 0  # since the last answer
        in_flight, alone = self._replay(self._events())
        if in_flight:
            self._append("died", [row_id for row_id in ids if row_id in in_flight], alone)
            self._replay(self._events())

    def asked(self, ids: Iterable[str], alone: bool) -> None:
        """Note that rows are being asked about, ``alone`` in the engine or beside others."""
        self._append("asked", list(ids), alone)

    def answered(self, row_id: str) -> None:
        """Note that a row has its answer. The answer is lost when the block does not end, but the row is innocent."""
        self._append("answered", [row_id])

    def close(self) -> None:
        """The block has ended."""
        self._path.unlink(missing_ok=True)

    def _replay(self, events: Iterable[dict[str, Any]]) -> tuple[set[str], bool]:
        """Read the log from its beginning; returns the rows in flight at its end, and whether they were alone in the engine."""
        self.culprits, self.suspects, self.deaths = set(), [], 0
        in_flight: set[str] = set()
        alone = False
        deaths_alone: Counter[str] = Counter()
        for event in events:
            ids = event["ids"]
            if event["event"] == "asked":
                in_flight |= set(ids)
                alone = event["alone"]
                continue
            in_flight -= set(ids)
            self.suspects = [left for group in self.suspects if (left := [row_id for row_id in group if row_id not in ids])]
            if event["event"] == "answered":
                self.deaths = 0
                continue
            self.deaths += 1
            if event["alone"] and len(ids) == 1:
                deaths_alone.update(ids)
            if any(deaths_alone[row_id] == _DEATHS_OF_A_CULPRIT for row_id in ids):
                self.culprits |= set(ids)
            else:
                self.suspects.append(ids)
        return in_flight, alone

    def _events(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a death cut the last line off
            self._path.write_bytes(whole)
        return [json.loads(line) for line in whole.decode().splitlines()]

    def _append(self, event: str, ids: list[str], alone: bool = False) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "ids": ids, "alone": alone}) + "\n")


def halves(group: Sequence[str]) -> list[Sequence[str]]:
    """A group in two parts; a group of one stays whole."""
    middle = (len(group) + 1) // 2
    return [part for part in (group[:middle], group[middle:]) if part]

"""An engine in every actor of a Ray Data pool: the thin Ray part around a coroutine per row.

When an engine dies its actor exits, Ray starts another one and gives it the same blocks again; ``in_flight`` tells it which
rows to be careful with. What a step keeps beside the answers until it ends:

    NAME                 the answers
    NAME-checkpoints     which rows are answered (Ray Data)
    NAME-in-flight       what engines are asked just now; of one start of the step
    NAME-use             how much the engines did; of all starts
"""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aloftrag import artifacts, cluster, redact, resumable, storage
from aloftrag.artifacts import BLOCK_ROWS, Run
from aloftrag.engine import StartEngine
from aloftrag.engine.in_flight import InFlightLog, halves
from aloftrag.engine.port import Completion, Engine, EngineDead
from aloftrag.engine.server import StartChatServerEngine, StartServerEngine
from aloftrag.errors import RunError
from aloftrag.prompts.chat import Prompt

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]

_SEQUENCES = 256  # that an engine probably answers side by side, where the job does not say
_STOPPED = "stopped.txt"  # why an actor could not go on
_COUNT = "count.txt"  # how many actors there were, at last
_LOOK_SECONDS = 5  # how often a wait for answers looks whether any came, and whether the engine lives
MOST_DEATHS = 16  # of engines that answered nothing: to find one row in a block of 256 takes 10
_DEAD = 1  # the exit code of an actor whose engine died: Ray starts it again and gives it its blocks again


@dataclass(frozen=True)
class Question:
    """What is asked about each row."""

    ask: Callable[[Engine, Row], Awaitable[Row]]
    set_aside: Callable[[Row, str], Row]  # the answer's row for a row that cannot be asked, with the reason
    id_column: str
    schema: pa.Schema  # of the answers


class BusyEngine:
    """An engine, and how much of the time in which it had requests it had as many as it answers side by side."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic):
        self._engine = engine
        self.max_num_seqs = engine.max_num_seqs
        self._clock = clock
        self._requests = 0
        self._since: float | None = None  # the last change; None before the first request
        self.seconds = 0.0  # with any
        self.busy_seconds = 0.0  # a half full engine counts half
        self.tokens = 0  # of prompts and replies

    @property
    def is_dead(self) -> bool:
        """Whether the engine has died."""
        return self._engine.is_dead

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``aloftrag.engine.port.Engine``."""
        self._count(1)
        try:
            completion = await self._engine.complete(prompt)
            self.tokens += completion.tokens
            return completion
        finally:
            self._count(-1)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _count(self, change: int) -> None:
        now = self._clock()
        if self._since is not None and self._requests:
            self.seconds += now - self._since
            self.busy_seconds += (now - self._since) * min(1.0, self._requests / self.max_num_seqs)
        self._since = now
        self._requests += change


class _Turns:
    """Rows are asked beside each other; suspects alone."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._together = 0
        self._alone = False

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            async with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone)
            self._alone = True  # from here on no other begins
            await self._changed.wait_for(lambda: not self._together)
        try:
            yield
        finally:
            async with self._changed:
                self._alone = False
                self._changed.notify_all()


class _EngineActor:
    """Holds one engine; answers the rows of several blocks at once."""

    def __init__(self, start_engine: StartEngine, question: Question, logs: Path, use: Path, stall_minutes: float):
        began = time.monotonic()
        self._engine = BusyEngine(start_engine())
        self._start_seconds = time.monotonic() - began
        self._question = question
        self._logs = storage.scratch(logs.parent) / logs.name
        self._use_log, self._stopped = use / f"{uuid.uuid4().hex}.json", use / _STOPPED
        self._places = asyncio.Semaphore(2 * self._engine.max_num_seqs)  # while one waits for its next prompt, another one's runs
        self._turns = _Turns()
        self._stall_seconds = 60 * stall_minutes
        self._last_answer = 0.0

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        rows = {row[self._question.id_column]: row for row in block.to_pylist()}
        log = InFlightLog(self._logs, list(rows))
        try:
            answers = await self._watch(self._answers(rows, log), log)
        except RunError as error:
            storage.write(self._stopped, redact.text(str(error)).encode())
            raise
        log.close()
        use = {"seconds": self._engine.seconds, "busy_seconds": self._engine.busy_seconds, "tokens": self._engine.tokens}
        artifacts.write_json(self._use_log, {**use, "start_seconds": self._start_seconds})
        yield pa.Table.from_pylist([answers[row_id] for row_id in rows], schema=self._question.schema)

    async def _answers(self, rows: dict[str, Row], log: InFlightLog) -> dict[str, Row]:
        if log.deaths >= MOST_DEATHS:
            raise RunError(f"the engine died {log.deaths} times without an answer between; {_seen(log)}")
        suspects = {row_id for group in log.suspects for row_id in group}
        answers = {row_id: self._question.set_aside(rows[row_id], "the engine died on it") for row_id in log.culprits}
        others = [row_id for row_id in rows if row_id not in suspects and row_id not in answers]

        async def answer(row_id: str) -> None:
            try:
                answers[row_id] = await self._question.ask(self._engine, rows[row_id])
            except EngineDead:
                os._exit(_DEAD)
            log.answered(row_id)
            self._last_answer = time.monotonic()

        async def beside_others(row_id: str) -> None:
            async with self._places, self._turns.together():
                log.asked([row_id], alone=False)
                await answer(row_id)

        await asyncio.gather(*(beside_others(row_id) for row_id in others))
        for group in log.suspects:
            for half in halves(group):
                async with self._turns.alone():
                    log.asked(half, alone=True)
                    await asyncio.gather(*(answer(row_id) for row_id in half))
        return answers

    async def _watch(self, work: Awaitable[dict[str, Row]], log: InFlightLog) -> dict[str, Row]:
        """The result of ``work``; raises ``RunError`` when this actor has answered nothing for too long."""
        began = time.monotonic()
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            if self._engine.is_dead:
                os._exit(_DEAD)
            if time.monotonic() - max(self._last_answer, began) > self._stall_seconds:
                minutes = f"{self._stall_seconds / 60:g} minutes (engine.stall_minutes)"
                raise RunError(f"no row was answered for {minutes}; {_seen(log)}")
        return task.result()


def _seen(log: InFlightLog) -> str:
    return f"{len(log.suspects)} groups of rows are asked again after a death, {len(log.culprits)} rows are set aside"


def ask_rows(
    source: Path, question: Question, start_engine: StartEngine, run: Run, answers: Path, columns: list[str] | None = None
) -> None:
    """Write one answer for each row of the tables in ``source`` to the folder ``answers``; resumable at the row.

    Raises ``RunError`` when an engine cannot go on.
    """
    in_flight, use = _beside(answers, "in-flight"), _beside(answers, "use")
    storage.remove(storage.scratch(in_flight))  # of a start that was killed; on other machines' own disks it stays, under its own name
    logs = in_flight / uuid.uuid4().hex
    most = len(artifacts.row_groups(source))  # engines that have something to do: a block is one engine's
    (use / _STOPPED).unlink(missing_ok=True)
    with _explained(use / _STOPPED):
        resumable.map_rows(
            source=source,
            id_column=question.id_column,
            columns=columns,
            transform=lambda rows: _ask(rows, question, start_engine, run, most, logs, use),
            destination=answers,
            schema=question.schema,
            checkpoints=_beside(answers, "checkpoints"),
        )


def _beside(answers: Path, kind: str) -> Path:
    return answers.with_name(f"{answers.name}-{kind}")


def _ask(dataset: "Dataset", question: Question, start_engine: StartEngine, run: Run, most: int, logs: Path, use: Path) -> "Dataset":
    """One answer for each row of ``dataset``, by at most ``most`` actors; they note in ``logs`` what they ask, for those after them."""
    from ray.data import ActorPoolStrategy

    # While the last rows of a block are answered, the next have begun.
    job = run.job
    on_server = isinstance(start_engine, StartServerEngine | StartChatServerEngine)
    size = 1 if on_server else min(replicas(run), most)
    storage.write(use / _COUNT, str(size).encode())
    blocks = 2 * (job.engine.max_num_seqs or _SEQUENCES) // BLOCK_ROWS + 2
    return artifacts.map_blocks(
        dataset,
        _EngineActor,
        fn_constructor_args=(start_engine, question, logs, use, job.engine.stall_minutes),
        compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=blocks, max_concurrent_calls_per_actor=blocks),
        udf_modifying_row_count=False,
        num_cpus=0,
        num_gpus=job.resources.tensor_parallel if cluster.gpus() and not on_server else 0,
    )


@contextmanager
def _explained(reason: Path) -> Iterator[None]:
    """Raises what stopped an actor as the ``RunError`` that it was; Ray makes a traceback of it."""
    from ray.exceptions import UserCodeException

    try:
        yield
    except UserCodeException as error:
        if not reason.is_file():
            raise
        raise RunError(reason.read_text(encoding="utf-8")) from error


def engine_use(*answers: Path) -> dict[str, Any]:
    """Of the engines that wrote these answers: how many ran side by side, for how long together, how full (0 to 1), and their tokens.

    Over all starts of the step, up to the last block that each finished. Tokens of prompts count whether they were computed or cached.
    """
    found = [artifacts.read_json(path) for folder in answers for path in _beside(folder, "use").glob("*.json")]
    total = {name: sum(engine[name] for engine in found) for name in ("seconds", "busy_seconds", "tokens", "start_seconds")}
    return {
        "count": max(int((_beside(folder, "use") / _COUNT).read_text()) for folder in answers),
        "start_seconds": round(total["start_seconds"], 1),
        "seconds": round(total["seconds"], 1),
        "busy": round(total["busy_seconds"] / total["seconds"], 3) if total["seconds"] else None,
        "tokens": total["tokens"],
    }


def replicas(run: Run) -> int:
    """How many engines run side by side: as configured, else as many as the run's share of the GPUs holds, one on a CPU."""
    resources = run.job.resources
    if resources.engine_replicas != "auto":
        return resources.engine_replicas
    return max(1, cluster.gpus_for(run) // resources.tensor_parallel)

"""An engine in every actor of a Ray Data pool: the thin Ray part around a coroutine per row.

When an engine dies its actor exits, Ray starts another one and gives it the same blocks again; ``in_flight`` tells it which
rows to be careful with.
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

from aloftrag import artifacts
from aloftrag.artifacts import BLOCK_ROWS
from aloftrag.engine import StartEngine
from aloftrag.engine.in_flight import InFlightLog, halves
from aloftrag.engine.port import Completion, Engine, EngineDead
from aloftrag.engine.server import StartChatServerEngine, StartServerEngine
from aloftrag.errors import RunError
from aloftrag.job import Job, Resources
from aloftrag.prompts.chat import Prompt

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]

_SEQUENCES = 256  # that an engine probably answers side by side, where the job does not say
_STOPPED = "stopped.txt"  # why an actor could not go on
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
    """An engine, and how much of the time it had as many requests as it answers side by side."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic):
        self._engine = engine
        self.max_num_seqs = engine.max_num_seqs
        self._clock = clock
        self._requests = 0
        self._since: float | None = None  # the last change; None before the first request
        self.seconds = 0.0
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
        if self._since is not None:
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

    def __init__(self, start_engine: StartEngine, question: Question, logs: Path, stall_minutes: float):
        self._engine = BusyEngine(start_engine())
        self._question = question
        self._logs = logs
        self._use_log = _use(logs) / f"{uuid.uuid4().hex}.json"
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
            (self._logs / _STOPPED).write_text(str(error), encoding="utf-8")
            raise
        log.close()
        use = {"seconds": self._engine.seconds, "busy_seconds": self._engine.busy_seconds, "tokens": self._engine.tokens}
        artifacts.write_json(self._use_log, use)
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


def ask_rows(dataset: "Dataset", question: Question, start_engine: StartEngine, job: Job, logs: Path) -> "Dataset":
    """One answer for each row of ``dataset``; ``logs`` is where actors note what they ask, for those that come after them."""
    from ray.data import ActorPoolStrategy

    # While the last rows of a block are answered, the next have begun.
    blocks = 2 * (job.engine.max_num_seqs or _SEQUENCES) // BLOCK_ROWS + 2
    on_server = isinstance(start_engine, StartServerEngine | StartChatServerEngine)
    return dataset.map_batches(
        _EngineActor,
        fn_constructor_args=(start_engine, question, logs, job.engine.stall_minutes),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=1 if on_server else replicas(job.resources), max_tasks_in_flight_per_actor=blocks, max_concurrent_calls_per_actor=blocks
        ),
        udf_modifying_row_count=False,
        num_cpus=1,
        num_gpus=job.resources.tensor_parallel if gpus() and not on_server else 0,
    )


@contextmanager
def explained(logs: Path) -> Iterator[None]:
    """Raises what stopped an actor as the ``RunError`` that it was; Ray makes a traceback of it."""
    from ray.exceptions import UserCodeException

    try:
        yield
    except UserCodeException as error:
        reason = logs / _STOPPED
        if not reason.is_file():
            raise
        raise RunError(reason.read_text(encoding="utf-8")) from error


def _use(logs: Path) -> Path:
    """Where actors note how much they were used: beside their logs, which a new start removes."""
    return logs.with_name(f"{logs.name}-use")


def engine_use(logs: Path) -> dict[str, Any]:
    """Of the engines that ``ask_rows`` gave these logs: how full they were on average, from 0 to 1, and the tokens that they computed.

    Over all starts of the step, up to the last block that each finished. Tokens of prompts count whether they were computed or cached.
    """
    found = [artifacts.read_json(path) for path in _use(logs).glob("*.json")]
    seconds = sum(engine["seconds"] for engine in found)
    busy = round(sum(engine["busy_seconds"] for engine in found) / seconds, 3) if seconds else None
    return {"engine_busy": busy, "engine_tokens": sum(engine["tokens"] for engine in found)}


def gpus() -> int:
    """How many GPUs the cluster has."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def replicas(resources: Resources) -> int:
    """How many engines run side by side: as configured, else as many as the GPUs hold, one on a CPU."""
    if resources.engine_replicas != "auto":
        return resources.engine_replicas
    return max(1, gpus() // resources.tensor_parallel)

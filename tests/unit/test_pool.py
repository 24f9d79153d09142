"""How full an engine was, and when an actor gives up."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aloftrag.engine import Engine
from aloftrag.engine.in_flight import InFlightLog
from aloftrag.engine.pool import MOST_DEATHS, BusyEngine, Question, _EngineActor
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.errors import RunError
from aloftrag.prompts.chat import ChatPrompt


def test_an_engine_is_as_busy_as_it_has_requests_of_those_it_takes() -> None:
    now = 0.0

    async def ask() -> BusyEngine:
        nonlocal now
        gates = [asyncio.Event() for _ in range(4)]

        class Gated(ScriptedEngine):
            async def complete(self, prompt):  # type: ignore[no-untyped-def]
                await gates[prompt.max_tokens].wait()
                return await super().complete(prompt)

        engine = BusyEngine(Gated(lambda prompt: "yes", max_num_seqs=2), clock=lambda: now)
        tasks = []
        for number in range(3):  # at 0, 10 and 20 s one more
            tasks.append(asyncio.ensure_future(engine.complete(ChatPrompt([], number))))
            await asyncio.sleep(0)
            now += 10
        for gate, task in zip(gates, tasks, strict=False):  # at 30, 40 and 50 s one less
            gate.set()
            await task
            now += 10
        tasks.append(asyncio.ensure_future(engine.complete(ChatPrompt([], 3))))  # at 60 s, after 10 s without any, for 5 s
        await asyncio.sleep(0)
        now += 5
        gates[3].set()
        await tasks[3]
        return engine

    engine = asyncio.run(ask())
    assert engine.seconds == 50 + 5
    assert engine.tokens == 4
    assert engine.busy_seconds == pytest.approx(0.5 * 10 + 10 + 10 + 10 + 0.5 * 10 + 0.5 * 5)


def test_an_actor_gives_up_on_a_block_on_which_engine_after_engine_dies(tmp_path: Path) -> None:
    schema = pa.schema({"text_id": pa.string()})

    async def ask(engine: Engine, row: dict[str, Any]) -> dict[str, Any]:
        return row

    question = Question(ask, lambda row, reason: row, "text_id", schema)
    block = pa.table({"text_id": ["a", "b"]}, schema=schema)

    def answers() -> list[pa.Table]:
        async def collect() -> list[pa.Table]:
            actor = _EngineActor(lambda: ScriptedEngine(lambda prompt: "yes"), question, tmp_path, tmp_path / "use", stall_minutes=1)
            return [table async for table in actor(block)]

        return asyncio.run(collect())

    for _ in range(MOST_DEATHS):
        InFlightLog(tmp_path, ["a", "b"]).asked(["a", "b"], alone=False)
    with pytest.raises(RunError, match=rf"^the engine died {MOST_DEATHS} times without an answer between; 1 groups of rows are asked"):
        answers()
    InFlightLog(tmp_path, ["a", "b"]).answered("a")
    assert answers() == [block]


def test_what_stopped_an_actor_is_kept_without_secrets(tmp_path: Path) -> None:
    async def ask(engine: Engine, row: dict[str, Any]) -> dict[str, Any]:
        raise RunError("http://user:pass-word@host:8000/v1 answers no more")

    async def stop() -> None:
        question = Question(ask, lambda row, reason: row, "text_id", pa.schema({"text_id": pa.string()}))
        actor = _EngineActor(lambda: ScriptedEngine(lambda prompt: "yes"), question, tmp_path, tmp_path / "use", stall_minutes=1)
        [table async for table in actor(pa.table({"text_id": ["a"]}))]

    with pytest.raises(RunError):
        asyncio.run(stop())
    assert (tmp_path / "use" / "stopped.txt").read_text() == "http://***@host:8000/v1 answers no more"

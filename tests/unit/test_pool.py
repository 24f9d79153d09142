"""How full an engine was."""

import asyncio

import pytest

from aloftrag.engine.pool import BusyEngine
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.prompts.chat import ChatPrompt


def test_an_engine_is_as_busy_as_it_has_requests_of_those_it_takes() -> None:
    now = 0.0

    async def ask() -> BusyEngine:
        nonlocal now
        gates = [asyncio.Event() for _ in range(3)]

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
        for gate, task in zip(gates, tasks, strict=True):  # at 30, 40 and 50 s one less
            gate.set()
            await task
            now += 10
        return engine

    engine = asyncio.run(ask())
    assert engine.seconds == 50
    assert engine.busy_seconds == pytest.approx(0.5 * 10 + 10 + 10 + 10 + 0.5 * 10)

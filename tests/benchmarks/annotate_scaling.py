"""Rows per second of steps 1 to 3 with more engine actors, and the driver's memory with more texts; the engine only waits.

``efficiency_4`` counts the rows written after the first block. That flatters many actors: when the first block is written, each has
nearly done its own. ``efficiency_4_by_calls`` counts the calls answered since every actor had answered one.
"""

import argparse
import json
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aloftrag import artifacts, schemas
from aloftrag.artifacts import Run
from aloftrag.engine.port import Completion
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.prompts import rate_text
from aloftrag.prompts.chat import ChatPrompt, Prompt
from tests.benchmarks import in_a_process_of_its_own, show
from tests.benchmarks.annotate import job_of
from tests.steps import tables

ACTORS = (1, 2, 4)
ROWS_IN_FLIGHT = 16  # twice max_num_seqs


class TimedEngine(ScriptedEngine):
    """Notes when it answered each call, in a file of its own in ``folder``."""

    def __init__(self, folder: Path, seconds_each: float):
        super().__init__(reply, seconds_each, ROWS_IN_FLIGHT // 2)
        self._answered = (folder / f"{id(self)}-{time.time_ns()}").open("ab", buffering=0)

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``aloftrag.engine.port.Engine``."""
        completion = await super().complete(prompt)
        self._answered.write(np.float64(time.time()).tobytes())
        return completion


def reply(prompt: Prompt) -> str:
    """A rating, or a question and an answer."""
    assert isinstance(prompt, ChatPrompt)
    return "8" if prompt.prefill == rate_text.prompt("", "English", [], "instructions-first").prefill else "Who?\n### Answer\nAda"  # type: ignore[union-attr]


def measure(texts: int, actors: int, seconds_each: float) -> dict[str, Any]:
    """One run of the step: rows per second, and the driver's most memory."""
    from aloftrag import cluster
    from aloftrag.steps import annotate

    job = job_of(layout="instructions-first")
    resources, engine = {"engine_replicas": actors}, {"max_num_seqs": ROWS_IN_FLIGHT // 2}
    job = job.model_copy(update={"resources": job.resources.model_copy(update=resources), "engine": job.engine.model_copy(update=engine)})
    with tempfile.TemporaryDirectory() as name:
        run = Run(job.resolved(), Path(name))
        rows = tables.text_rows({f"t{number:06d}": f"Gate {number} opens." for number in range(texts)})
        tables.write(run.artifact("texts"), schemas.TEXTS, rows)
        del rows
        cluster.connect()
        work = Path(name) / "work"
        answered = artifacts.fresh_folder(Path(name) / "answered")
        counts = annotate.make(run, run.artifact("annotations"), work, start_engine=partial(TimedEngine, answered, seconds_each))
        cluster.disconnect()
        calls = [np.fromfile(path) for path in answered.iterdir()]
        written = sorted((path.stat().st_mtime, artifacts.rows_of(path)) for path in artifacts.parquet_files(work / "annotated_texts"))
    assert counts["texts"] == counts["questions"] == texts
    assert len(calls) == actors
    (first, first_rows), (last, _) = written[0], written[-1]
    began = max(times[0] for times in calls)
    calls_a_row = 2
    return {
        "rows_per_second": (texts - first_rows) / (last - first),
        "rows_per_second_by_calls": float(sum((times > began).sum() for times in calls)) / calls_a_row / (last - began),
        "driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Actors side by side, then few against many texts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="*", type=float, help="texts, actors, seconds a call: this run alone")
    options = parser.parse_args()
    if options.run:
        texts, actors, seconds_each = options.run
        print(json.dumps(measure(int(texts), int(actors), seconds_each)))
        return
    module = "tests.benchmarks.annotate_scaling"
    found = {actors: in_a_process_of_its_own(module, 6_000, actors, 0.05) for actors in ACTORS}
    memory = {texts: in_a_process_of_its_own(module, texts, 4, 0.005)["driver_mb"] for texts in (20_000, 200_000)}
    speeds = ("rows_per_second", "rows_per_second_by_calls")
    show("6,000 texts, 50 ms a call", [{"actors": actors, **{speed: run[speed] for speed in speeds}} for actors, run in found.items()])
    show("5 ms a call, 4 actors", [{"texts": texts, "driver MB": megabytes} for texts, megabytes in memory.items()])
    by_blocks, by_calls = (found[4][speed] / found[1][speed] / 4 for speed in speeds)
    ratio = memory[200_000] / memory[20_000]
    print(
        json.dumps(
            {
                "efficiency_4": round(by_blocks, 3),
                "efficiency_4_by_calls": round(by_calls, 3),
                "driver_memory_ratio": round(ratio, 3),
            }
        )
    )


if __name__ == "__main__":
    main()

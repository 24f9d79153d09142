"""Rows per second of steps 1 to 3 with more engine actors, and the driver's memory with more texts; the engine only waits."""

import argparse
import json
import resource
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from aloftrag import artifacts, schemas
from aloftrag.artifacts import Run
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.prompts import rate_text
from aloftrag.prompts.chat import ChatPrompt, Prompt
from tests.benchmarks import in_a_process_of_its_own, show
from tests.benchmarks.annotate import job_of
from tests.steps import tables

ACTORS = (1, 2, 4)


def reply(prompt: Prompt) -> str:
    """A rating, or a question and an answer."""
    assert isinstance(prompt, ChatPrompt)
    return "8" if prompt.prefill == rate_text.prompt("", "English", [], "instructions-first").prefill else "Who?\n### Answer\nAda"  # type: ignore[union-attr]


def measure(texts: int, actors: int, seconds_each: float) -> dict[str, Any]:
    """One run of the step: rows per second between the first and the last written block, and the driver's most memory."""
    from aloftrag import cluster
    from aloftrag.steps import annotate

    job = job_of(layout="instructions-first")
    job = job.model_copy(update={"resources": job.resources.model_copy(update={"engine_replicas": actors})})
    with tempfile.TemporaryDirectory() as name:
        run = Run(job.resolved(), Path(name))
        rows = tables.text_rows({f"t{number:06d}": f"Gate {number} opens." for number in range(texts)})
        tables.write(run.artifact("texts"), schemas.TEXTS, rows)
        del rows
        cluster.connect()
        work = Path(name) / "work"
        engine = partial(ScriptedEngine, reply, seconds_each, 8)  # 16 rows in flight
        counts = annotate.make(run, run.artifact("annotations"), work, start_engine=engine)
        cluster.disconnect()
        written = sorted((path.stat().st_mtime, artifacts.rows_of(path)) for path in artifacts.parquet_files(work / "texts"))
    assert counts["texts"] == counts["questions"] == texts
    (first, first_rows), (last, _) = written[0], written[-1]
    return {
        "rows_per_second": (texts - first_rows) / (last - first),
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
    speeds = {actors: in_a_process_of_its_own(module, 6_000, actors, 0.05)["rows_per_second"] for actors in ACTORS}
    memory = {texts: in_a_process_of_its_own(module, texts, 4, 0.005)["driver_mb"] for texts in (20_000, 200_000)}
    show(
        "6,000 texts, 50 ms a call", [{"actors": actors, "rows/s": speed, "of one": speed / speeds[1]} for actors, speed in speeds.items()]
    )
    show("5 ms a call, 4 actors", [{"texts": texts, "driver MB": megabytes} for texts, megabytes in memory.items()])
    print(
        json.dumps({"efficiency_4": round(speeds[4] / speeds[1] / 4, 3), "driver_memory_ratio": round(memory[200_000] / memory[20_000], 3)})
    )


if __name__ == "__main__":
    main()

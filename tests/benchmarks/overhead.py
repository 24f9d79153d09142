"""What the pipeline adds to the time of engine, embedder and trainer, on XQuAD's English texts with the real models.

``make bench-overhead`` runs ``jobs/xquad-en-cpu.yaml`` to its report (about 45 minutes on 2 cores) and reads its manifests. The time of a
step is parted into the start-up of what computes in it (on a CPU with the merged copy for the adapter's replies), the time in which that
computes, and the rest: reading and writing, Ray's scheduling, waits between blocks, processes that end, the search. ``overhead`` is the
rest, of all but start-ups.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from aloftrag import artifacts
from tests.benchmarks import SHARED
from tests.end_to_end.driver import start

JOB = Path(__file__).parents[2] / "jobs" / "xquad-en-cpu.yaml"
MADE = ("texts", "annotations", "negatives", "chats", "adapter", "answers", "scores")


def parts(manifest: dict[str, object]) -> tuple[float, float]:
    """Seconds of start-ups, and in which the started ones computed, of one step."""
    counts = manifest["counts"]
    assert isinstance(counts, dict)
    used = [counts[name] for name in ("engines", "embedders") if name in counts]
    start_up = sum(use["start_seconds"] / use["count"] for use in used) + counts.get("start_seconds", 0.0)
    computing = sum(use["seconds"] / use["count"] for use in used)
    if "tokens_per_second" in counts:
        computing += counts["tokens"] / counts["tokens_per_second"]
    return start_up, computing


def main() -> None:
    """Run the job, and part its time."""
    table = SHARED / "data" / "qa" / "xquad.en.parquet"
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        settings = [f"corpus.paths={json.dumps([str(table)])}", f"evaluation.gold={table}"]
        process = start(["run", str(JOB), "--runs", name, *(part for setting in settings for part in ("--set", setting))])
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(output[-3000:])
        wall = time.monotonic() - began
        print("\n".join(output.splitlines()[-5:]))  # the verdict
        run = Path(name) / "xquad-en-cpu" / "en"
        manifests = [found for artifact in MADE if (found := artifacts.manifest(run / artifact))]
        print(f"{'step':<18}{'seconds':>9}{'start-up':>10}{'computing':>11}{'rest':>7}")
        totals = [0.0, 0.0, 0.0]
        for found in manifests:
            start_up, computing = parts(found)
            totals = [total + value for total, value in zip(totals, (found["seconds"], start_up, computing), strict=True)]
            rest = found["seconds"] - start_up - computing
            print(f"{found['step']:<18}{found['seconds']:>9.0f}{start_up:>10.0f}{computing:>11.0f}{rest:>7.0f}")
        steps, start_ups, computing = totals
        print(f"{'around the steps':<18}{wall - steps:>9.0f}{'':>10}{'':>11}{'':>7}")
        beyond = wall - start_ups - (wall - steps)
        result = {
            "overhead": round((beyond - computing) / beyond, 3),
            "wall_seconds": round(wall),
            "start_up_seconds": round(start_ups + wall - steps),
            "computing_seconds": round(computing),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()

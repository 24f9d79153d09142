"""The driver killed at its worst moments: run again, the result is whole and nothing is doubled.

On a two-layer random model, with the real embedder and trainer. A run is killed in the middle of step 1, between a step's last write and
its manifest, and in training, and started again each time; the first two with a scripted engine, and, as it takes minutes, with the real
one among the fault tests.
"""

from pathlib import Path

import pytest

from aloftrag import artifacts
from aloftrag.training import row_store
from aloftrag.training.row_store import RowStore
from tests.cluster import scripted
from tests.end_to_end.driver import ended, environment, finish, kill_when, some_files, start
from tests.end_to_end.small_job import TEXTS, hold_mined, hold_trained, sections
from tests.steps.training_rows import trained, write_run

# Tells which files step 1 wrote and when, and is killed when step 4 is done but for its manifest.
KILL_BEFORE_MANIFEST = """
import os, signal
from aloftrag import artifacts
write = artifacts.finish
def finish(artifact, step, *rest):
    if step == "annotate":
        for file in artifact.parent.glob(".work/annotate-*/annotated_texts/*.parquet"):
            print("WRITTEN", file, file.stat().st_mtime_ns)
    if step == "mine_negatives":
        os.kill(os.getpid(), signal.SIGKILL)
    write(artifact, step, *rest)
artifacts.finish = finish
"""


def written(run: Path) -> set[str]:
    """The files that step 1 has written so far, and when."""
    return {f"WRITTEN {file} {file.stat().st_mtime_ns}" for file in run.glob(".work/annotate-*/annotated_texts/*.parquet")}


@pytest.mark.parametrize("engine", ["scripted", pytest.param("real", marks=pytest.mark.faults)])
def test_a_run_killed_twice_before_training_doubles_and_loses_nothing(engine: str, small_job: Path, tiny_llm: Path, tmp_path: Path) -> None:
    job, environ = small_job, environment()
    if engine == "scripted":
        job = scripted.write_job(tmp_path, {"en": TEXTS}, tiny_llm, name="test", **sections(tiny_llm))
        environ |= {**scripted.STAND_INS, scripted.SECONDS: "0.05"}
    run = tmp_path / "runs" / "test" / "en"
    arguments = ["run", str(job), "--runs", str(tmp_path / "runs")]

    # In the middle of step 1: some blocks are committed, others are not.
    kill_when(start(arguments, environ=environ), some_files(run, ".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet"))
    committed = written(run)
    assert committed
    assert artifacts.manifest(run / "annotations") is None

    # Between the last write of step 4 and its manifest.
    process = start(arguments, KILL_BEFORE_MANIFEST, environ)
    output = ended(process, seconds=300)
    assert process.returncode == -9, output[-5000:]
    assert committed < set(output.splitlines())  # what was there is there still, and was not written again
    assert artifacts.manifest(run / "negatives") is None

    output = finish(start([*arguments, "--only", "mine_negatives"], environ=environ))
    assert output.count("done before") == 2  # texts, annotations
    hold_mined(run)


@pytest.mark.faults
def test_a_run_killed_in_training_learns_the_same(small_job: Path, tiny_llm: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "test" / "en"
    arguments = ["run", str(small_job), "--runs", str(tmp_path / "runs")]
    kill_when(start(arguments), some_files(run, ".work/tune_adapter-*/checkpoints/step-*"))
    assert artifacts.manifest(run / "adapter") is None
    (metrics,) = run.glob(".work/tune_adapter-*/metrics.jsonl")
    first_step = artifacts.read_jsonl(metrics)[0]

    output = finish(start([*arguments, "--only", "tune_adapter"]))
    assert output.count("done before") == 4  # texts, annotations, negatives, chats
    hold_trained(run)
    steps = artifacts.read_jsonl(run / "adapter" / "metrics.jsonl")
    assert steps[0] == first_step  # the same seconds: it was not done again

    row_store.write(run / "chats", "train", tmp_path / "rows")
    rows = RowStore(tmp_path / "rows")
    undisturbed = write_run(
        tmp_path / "undisturbed", tiny_llm, [rows[number] for number in range(len(rows))], **sections(tiny_llm)["training"]
    )
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in trained(undisturbed)], rel=5e-3)

"""The driver killed at its worst moments: run again, the result is whole and nothing is doubled.

With real engine, embedder and trainer on a two-layer random model. One run is killed in the middle of step 1, between a step's
last write and its manifest, and in training, and started again each time.
"""

from pathlib import Path

from aloftrag import artifacts
from tests.end_to_end.driver import ended, finish, kill_when, some_files, start
from tests.end_to_end.small_job import hold_trained

# Killed when the step is done but for its manifest.
KILL_BEFORE_MANIFEST = """
import os, signal
from aloftrag import artifacts
write = artifacts.finish
def finish(artifact, step, *rest):
    if step == {step!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(artifact, step, *rest)
artifacts.finish = finish
"""


def test_a_run_killed_three_times_doubles_and_loses_nothing(small_job: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "test" / "en"
    arguments = ["run", str(small_job), "--runs", str(tmp_path / "runs")]

    # In the middle of step 1: some blocks are committed, others are not.
    kill_when(start(arguments), some_files(run, ".work/annotate-*/checkpoints/*/*[!g].parquet"))
    committed = sum(artifacts.count_rows(folder) for folder in run.glob(".work/annotate-*/texts"))
    assert committed > 0
    assert artifacts.manifest(run / "annotations") is None

    # Between the last write of step 4 and its manifest.
    process = start(arguments, KILL_BEFORE_MANIFEST.format(step="mine_negatives"))
    output = ended(process, seconds=300)
    assert process.returncode == -9, output[-5000:]
    assert "annotate         done" in output
    assert artifacts.manifest(run / "negatives") is None

    # In training: a checkpoint is there.
    kill_when(start(arguments), some_files(run, ".work/tune_adapter-*/checkpoints/checkpoint_*/trainer_state.pt"))
    assert artifacts.manifest(run / "adapter") is None

    output = finish(start([*arguments, "--only", "tune_adapter"]))
    assert output.count("done before") == 4  # texts, annotations, negatives, chats
    hold_trained(run)

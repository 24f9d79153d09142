"""Workers killed under a run that goes on: the engine's process, the actor that holds it, and the training worker."""

import os
import signal
from pathlib import Path

import pytest

from tests.end_to_end.driver import finish, some_files, start, wait_for, workers
from tests.end_to_end.small_job import hold_whole


@pytest.mark.faults
def test_a_run_whose_workers_are_killed_ends_whole(small_job: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "test" / "en"
    process = start(["run", str(small_job), "--runs", str(tmp_path / "runs")])
    try:
        engines = set()
        for name, moment in (
            ("VLLM::EngineCore", ".work/annotate-*/in-flight/*.jsonl"),
            ("ray::MapWorker(ReadRowGroups->MapBatches(_EngineActor))", ".work/annotate-*/checkpoints/*/*[!g].parquet"),
            ("ray::RayTrainWorker", ".work/tune_adapter-*/checkpoints/step-*"),
        ):
            wait_for(process, some_files(run, moment))
            found = workers(process.pid, name)
            assert found, f"no process {name}"
            engines |= set(workers(process.pid, "VLLM::EngineCore"))
            os.kill(found[0], signal.SIGKILL)
        finish(process)
        assert not any(Path(f"/proc/{engine}").exists() for engine in engines), "an engine outlived its actor"
    finally:
        process.kill()
    hold_whole(run)

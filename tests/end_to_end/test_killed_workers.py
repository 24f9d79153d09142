"""Workers killed under a run that goes on: the engine's process and actor, the embedder, a shard of the index, the training worker."""

import os
import signal
from functools import partial
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
            ("VLLM::EngineCore", ".work/annotate-*/annotated_texts-in-flight/*/*.jsonl"),
            ("ray::MapWorker(MapBatches(_EngineActor))", ".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet"),
            ("ray::MapWorker(MapBatches(_Embedding))", ".work/mine_negatives-*/index-checkpoints/begun.json"),
            ("ray::_ShardActor", ".work/mine_negatives-*/mined-checkpoints/begun.json"),
            ("ray::RayTrainWorker", ".work/tune_adapter-*/checkpoints/step-*"),
        ):
            wait_for(process, some_files(run, moment))
            wait_for(process, partial(lambda name: bool(workers(process.pid, name)), name))
            found = workers(process.pid, name)
            engines |= set(workers(process.pid, "VLLM::EngineCore"))
            os.kill(found[0], signal.SIGKILL)
        finish(process)
        assert not any(Path(f"/proc/{engine}").exists() for engine in engines), "an engine outlived its actor"
    finally:
        process.kill()
    hold_whole(run)

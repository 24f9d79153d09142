"""Whole runs whose documents and run folder are in an object store: killed, and with a store that does not answer for a while."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aloftrag import artifacts, resumable, storage
from tests.end_to_end import small_job
from tests.end_to_end.driver import ended, environment, finish, kill_when, start, wait_for
from tests.object_store import BUCKET, in_this_process, s3_server

pytestmark = pytest.mark.faults


@pytest.fixture
def server() -> Iterator[tuple[dict[str, str], "subprocess.Popen[bytes]"]]:
    with s3_server() as (environ, process), in_this_process(environ):
        yield environ, process


@pytest.fixture
def store(server: Any, tmp_path: Path) -> dict[str, str]:
    """The environment in which a run reaches the store; a copy of it is on this machine's disk."""
    return {**environment(), **server[0], "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}  # whose sockets want short names


@pytest.fixture
def job_path(store: dict[str, str], tmp_path: Path, tiny_llm: Path) -> Path:
    small_job.write_texts(tmp_path / "texts.jsonl")
    storage.write(storage.at(f"s3://{BUCKET}/documents/texts.jsonl"), (tmp_path / "texts.jsonl").read_bytes())
    job: dict[str, Any] = {"name": "test", "languages": ["en"], "corpus": {"paths": [f"s3://{BUCKET}/documents/*.jsonl"]}}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**job, **small_job.sections(tiny_llm)}))
    return path


def exists(run: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(run.glob(pattern))


def test_a_run_in_an_object_store_that_is_killed_ends_whole(job_path: Path, store: dict[str, str]) -> None:
    arguments = ["run", str(job_path), "--runs", f"s3://{BUCKET}/runs"]
    run = storage.at(f"s3://{BUCKET}/runs/test/en")
    committed = ".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet"
    kill_when(start(arguments, environ=store), exists(run, committed))
    for file in run.glob(committed):  # as it lies there between the copy and the removal that Ray's move is made of
        storage.copy(file, file.with_name(file.name.removesuffix(".parquet") + resumable.PENDING))
    kill_when(start(arguments, environ=store), exists(run, ".work/tune_adapter-*/checkpoints/step-*/_whole"))
    finish(start(arguments, environ=store))
    small_job.hold_whole(run)
    assert "done before" in finish(start(arguments, environ=store))
    scores = json.loads((run / "scores.json").read_text())
    assert scores["questions"] == 8
    status = finish(start(["status", str(run)], environ=store))
    assert status.count("done") == 7
    # Made anew from other rows with the same settings: what this machine has of the rows before must not be trained on.
    (file, *others) = artifacts.parquet_files(run / "annotations")
    artifacts.write_table(storage.parquet(file).read().slice(0, 8), file)
    for other in others:
        storage.remove_file(other)
    finish(start([*arguments, "--redo", "mine_negatives", "--only", "mine_negatives"], environ=store))
    for step in ("assemble_chats", "tune_adapter"):
        finish(start([*arguments, "--only", step], environ=store))
    made = {name: artifacts.manifest(run / name) for name in ("chats", "adapter")}
    assert 0 < made["chats"]["counts"]["chats"] <= 8
    assert made["adapter"]["counts"]["steps"] == -(-made["chats"]["counts"]["chats"] // 4)


@pytest.mark.parametrize(
    "moment",
    [".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet", ".work/tune_adapter-*/checkpoints/step-*/_whole"],
    ids=["annotation", "training"],
)
def test_a_run_survives_an_object_store_that_does_not_answer_for_a_minute(
    job_path: Path, store: dict[str, str], server: Any, moment: str
) -> None:
    """It waits, or stops with one line and goes on with the same command."""
    arguments = ["run", str(job_path), "--runs", f"s3://{BUCKET}/runs"]
    run = storage.at(f"s3://{BUCKET}/runs/test/en")
    process = start(arguments, environ=store)
    wait_for(process, exists(run, moment))
    server[1].send_signal(signal.SIGSTOP)
    time.sleep(60)
    server[1].send_signal(signal.SIGCONT)
    output = ended(process, 600)
    if process.returncode:
        assert process.returncode == 1, output[-5000:]
        assert output.splitlines()[-1].startswith("aloftrag: "), output[-5000:]
        finish(start(arguments, environ=store))
    small_job.hold_whole(run)

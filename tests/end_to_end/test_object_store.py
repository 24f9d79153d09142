"""A whole run whose documents and run folder are in an object store, killed on its way, and between the two parts of Ray's commit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aloftrag import storage
from tests.end_to_end import small_job
from tests.end_to_end.driver import environment, finish, kill_when, start
from tests.object_store import BUCKET, in_this_process, s3_server

pytestmark = pytest.mark.faults


@pytest.fixture
def store(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which a run reaches the store; a copy of it is on this machine's disk."""
    with s3_server() as (environ, _), in_this_process(environ):
        yield {**environment(), **environ, "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}  # whose sockets want short names


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
    kill_when(start(arguments, environ=store), exists(run, ".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet"))
    kill_when(start(arguments, environ=store), exists(run, ".work/tune_adapter-*/checkpoints/step-*/_whole"))
    finish(start(arguments, environ=store))
    small_job.hold_whole(run)
    assert "done before" in finish(start(arguments, environ=store))
    scores = json.loads((run / "scores.json").read_text())
    assert scores["questions"] == 8
    status = finish(start(["status", str(run)], environ=store))
    assert status.count("done") == 7

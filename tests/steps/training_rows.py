"""Rows to train on, and a run of the real trainer on them, in processes of its own."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aloftrag import artifacts, schemas
from aloftrag.training import row_store
from aloftrag.training.rows import ANSWER, CITATION, NONE, TrainingRow


def random_rows(count: int, seed: int = 0, vocabulary: int = 1000, shortest: int = 12, longest: int = 60) -> list[TrainingRow]:
    """Rows of different lengths: nothing to learn at first, then a citation of a token or two, then an answer."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        length = draw.randint(shortest, longest)
        cited, answer = draw.randint(1, 2), draw.randint(2, 6)
        targets = [NONE] * (length - cited - answer) + [CITATION] * cited + [ANSWER] * answer
        rows.append(TrainingRow(f"{number:04d}", [draw.randrange(vocabulary) for _ in range(length)], targets))
    return rows


def chats_table(split: str, rows: Sequence[TrainingRow]) -> list[dict[str, Any]]:
    """Rows of ``schemas.CHATS`` as far as training reads them."""
    empty: dict[str, Any] = {name: [] for name in ("question_ids", "text_ids", "context_ids", "messages", "positive_positions")}
    return [
        {"chat_id": row.chat_id, "split": split, **empty, "token_ids": list(row.token_ids), "targets": list(row.targets)} for row in rows
    ]


def write_run(
    folder: Path, model: Path, train: Sequence[TrainingRow], validation_rows: Sequence[TrainingRow] = (), **settings: Any
) -> Path:
    """A folder that ``train_worker`` trains in."""
    folder.mkdir(parents=True)
    (folder / "model").write_text(str(model))
    (folder / "settings.json").write_text(json.dumps(settings))
    chats = folder / "chats"
    chats.mkdir()
    for split, rows in (("train", train), ("validation", validation_rows)):
        pq.write_table(pa.Table.from_pylist(chats_table(split, rows), schema=schemas.CHATS), chats / f"{split}.parquet")
    for split in ("train", "validation"):
        row_store.write(chats, split, folder / split)
    return folder


def start(folder: Path, workers: int = 1) -> list[subprocess.Popen[str]]:
    """The workers of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.steps.train_worker", str(folder)]
    return [
        subprocess.Popen(
            [*command, str(rank), str(workers), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(os.environ),
        )
        for rank in range(workers)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait for workers that must end well."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output[-5000:]
    finally:
        for process in processes:
            process.kill()


def trained(folder: Path, workers: int = 1) -> list[dict[str, Any]]:
    """Train to the end; the metrics of the steps."""
    finish(start(folder, workers))
    return steps_of(folder)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics of the steps done so far."""
    return [line for line in artifacts.read_jsonl(folder / "metrics.jsonl") if "loss" in line]

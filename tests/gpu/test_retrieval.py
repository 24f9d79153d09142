"""Embedding and exact search on a GPU, against float32 on the CPU and float64."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aloftrag.job import EmbedderPrompts
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.shard import Shard
from tests.conftest import EMBEDDER

REPOSITORY = Path(__file__).parents[2]

ON_THE_CPU = f"""
import json, sys
import numpy as np
from aloftrag.job import EmbedderPrompts
from aloftrag.retrieval.embedder import Embedder
np.save(sys.argv[1], Embedder({EMBEDDER!r}, EmbedderPrompts()).embed(json.load(sys.stdin), "text"))
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Paragraphs of the project's own documents."""
    files = sorted([*(REPOSITORY / "jobs").rglob("*.md"), *REPOSITORY.glob("*.md"), *REPOSITORY.glob("cluster/*.md")])
    parts = [part.strip() for file in files for part in re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))]
    found = list(dict.fromkeys(part for part in parts if len(part) > 80))
    assert len(found) > 100
    return found


def test_half_precision_finds_what_float32_finds(texts: list[str], tmp_path: Path) -> None:
    half = Embedder(EMBEDDER, EmbedderPrompts()).embed(texts, "text")
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", ON_THE_CPU, str(tmp_path / "full.npy")]
    subprocess.run(command, input=json.dumps(texts), text=True, check=True, cwd=REPOSITORY, env=environ)
    full = np.load(tmp_path / "full.npy")
    assert (full * half).sum(axis=1).min() > 0.9995
    of_half, of_full = (np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:6] for vectors in (half, full))
    in_common = [len(set(one) & set(other)) / 5 for one, other in zip(of_half, of_full, strict=True)]
    assert np.mean(in_common) > 0.98


def test_a_shard_searches_exactly() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((70_000, 128), np.float32)  # three blocks
    vectors[50_000:50_100] = vectors[:100]  # equal ones, in another block
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    ids = np.array([f"{number:08d}".encode() for number in range(len(vectors))])
    queries = np.concatenate([vectors[:200], vectors[-200:]])
    shard = Shard.of(ids, vectors)
    found, similarities = shard.search(queries, 10)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    wanted = np.argsort(-exact, axis=1, kind="stable")[:, :10]
    assert (found == ids[wanted]).all()
    assert (similarities == np.take_along_axis(exact, wanted, 1)).all()
    own = np.take_along_axis(exact, wanted[:, 4:5], 1)[:, 0]
    assert shard.count_before(queries, own, ids[wanted[:, 4]]).tolist() == [4] * len(queries)

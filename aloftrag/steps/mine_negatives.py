"""Step 4 (paper 3.4): for each question, the n-1 most similar other texts.

    texts, annotations -> negatives (a row per question), clusters (a row per text), index (the texts' vectors)

Texts and questions are embedded in Ray actors; each search actor holds the index and mines negatives for blocks of questions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from aloftrag import artifacts, models, schemas
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.job import EmbedderPrompts
from aloftrag.retrieval.actors import map_in_actors
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.index import ExactIndex
from aloftrag.retrieval.vectors import embed_texts, load_index

MAKES = "negatives"
BESIDE: tuple[str, ...] = ("clusters", "index")
NEEDS: tuple[str, ...] = ("texts", "annotations")
VERSION = 1


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the negatives, beside texts and annotations."""
    prompts = run.job.models.embedder_prompts
    return {
        "models.embedder": models.identity(run.job.models.embedder, "embedder"),
        "models.embedder_prompts": prompts.model_dump() if prompts else None,
        "negatives.contexts": run.job.contexts,
        "negatives.index": run.job.negatives.index,
    }


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``negatives`` artifact and beside it ``clusters`` and ``index``; returns its counts."""
    job, texts, index = run.job, run.artifact("texts"), run.artifact("index")
    embed_texts(job, texts, index, work / "index-checkpoints")
    arguments = (job.models.embedder, job.models.embedder_prompts, index, job.contexts)
    questions = _questions(run.artifact("annotations"), work / "questions")
    if not artifacts.parquet_files(questions):
        raise RunError("mine_negatives: no text has a question; see why in the annotations, or lower annotation.text_threshold")
    artifacts.map_rows(
        source=questions,
        id_column="question_id",
        transform=lambda rows: map_in_actors(rows, _Miner, arguments, job.resources),
        destination=folder,
        schema=schemas.NEGATIVES,
        checkpoints=work / "negatives-checkpoints",
    )
    _write_clusters(texts, artifacts.fresh_folder(run.artifact("clusters")))
    return _counts(folder, artifacts.count_rows(texts), job.contexts)


def mine(index: ExactIndex, queries: np.ndarray, rows: pa.Table, contexts: int) -> pa.Table:
    """``schemas.NEGATIVES`` for questions: the contexts-1 most similar texts other than the question's own.

    ``queries``: float32 [questions, dimensions]; ``rows`` has question_id, text_id, question in the same order. Fewer texts
    than ``contexts`` give fewer negatives.
    """
    own = rows["text_id"].to_pylist()
    ids, similarities = index.search(queries, contexts)
    is_negative = ids != np.asarray(own)[:, None]
    kept = [np.flatnonzero(row)[: contexts - 1] for row in is_negative]
    return pa.table(
        {
            "question_id": rows["question_id"],
            "text_id": rows["text_id"],
            "question": rows["question"],
            "negative_ids": [ids[row, columns].tolist() for row, columns in enumerate(kept)],
            "similarities": [similarities[row, columns].tolist() for row, columns in enumerate(kept)],
            "ranks": [(columns + 1).tolist() for columns in kept],
            "positive_similarity": index.similarity(queries, own),
            "positive_rank": index.rank(queries, own),
        }
    ).cast(schemas.NEGATIVES)


class _Miner:
    """Embeds blocks of questions and finds their negatives."""

    def __init__(self, model: str, prompts: EmbedderPrompts | None, index: Path, contexts: int):
        self._embedder = Embedder(model, prompts)
        self._index = load_index(index)
        self._contexts = contexts

    def __call__(self, block: pa.Table) -> pa.Table:
        queries = self._embedder.embed(block["question"].to_pylist(), "query")
        return mine(self._index, queries, block, self._contexts)


def _questions(annotations: Path, folder: Path) -> Path:
    """The annotated questions as a table of their own: what step 4 maps over."""
    artifacts.fresh_folder(folder)
    for path in artifacts.parquet_files(annotations):
        rows = artifacts.read_file(path, ["question_id", "text_id", "question"])
        rows = rows.filter(pc.is_valid(rows["question"]))
        if rows.num_rows:
            artifacts.write_table(rows, folder / path.name)
    return folder


def _write_clusters(texts: Path, folder: Path) -> None:
    """Every text is a cluster of its own: exact copies were merged when texts were loaded."""
    for path in artifacts.parquet_files(texts):
        ids = artifacts.read_file(path, ["text_id"])["text_id"]
        artifacts.write_table(pa.table({"text_id": ids, "cluster_id": ids}).cast(schemas.CLUSTERS), folder / path.name)


def _counts(folder: Path, texts: int, contexts: int) -> dict[str, Any]:
    rows = pl.scan_parquet(folder / "*.parquet")
    found = rows.select(
        pl.len().alias("questions"),
        (pl.col("positive_rank") == 1).sum().alias("found_own_text_first"),
        (pl.col("positive_rank") <= contexts).sum().alias("found_own_text_among_contexts"),
        (pl.col("negative_ids").list.len() < contexts - 1).sum().alias("fewer_negatives"),
    ).collect()
    return {"texts": texts, **found.row(0, named=True)}

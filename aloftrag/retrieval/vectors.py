"""Embedding tables of texts or questions: the Ray part around ``Embedder``, resumable at the row."""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from aloftrag import artifacts, resumable, schemas, storage
from aloftrag.artifacts import Run
from aloftrag.job import EmbedderPrompts
from aloftrag.retrieval.actors import embedders, map_in_actors
from aloftrag.retrieval.embedder import Embedder

Kind = Literal["query", "text"]
_COLUMN = {"query": "question", "text": "text"}
_ID = {"query": "question_id", "text": "text_id"}
_EMBEDDED = ("index", "added_index", "question_vectors")  # what steps embed
_COUNT = "count.txt"  # how many embedders there were, at last


class _Embedding:
    """Embeds blocks of rows."""

    def __init__(self, model: str, prompts: EmbedderPrompts | None, kind: Kind, use: Path):
        began = time.monotonic()
        self._embedder = Embedder(model, prompts)
        self._kind = kind
        self._use_log = use / f"{uuid.uuid4().hex}.json"
        self._use = {"start_seconds": time.monotonic() - began, "seconds": 0.0, "characters": 0}

    def __call__(self, block: pa.Table) -> pa.Table:
        began, texts = time.monotonic(), block[_COLUMN[self._kind]].to_pylist()
        vectors = self._embedder.embed(texts, self._kind)
        self._use["seconds"] += time.monotonic() - began
        self._use["characters"] += sum(map(len, texts))
        artifacts.write_json(self._use_log, self._use)
        hold_usable(vectors, block[_ID[self._kind]].to_pylist())
        kept = block.drop_columns("text") if self._kind == "text" else block
        return kept.append_column(schemas.vectors(vectors.shape[1]), vector_column(vectors))


def embed(run: Run, rows: Path, kind: Kind, destination: Path, work: Path, columns: list[str] | None = None) -> None:
    """Write the vector of each text or question of a table: its ``columns`` but the text, and ``vector``."""
    use = work / f"{destination.name}-use"
    most = len(artifacts.row_groups(rows))  # embedders that have something to do: a block is one embedder's

    def embedded(blocks: Any) -> Any:
        count = min(embedders(run), most)
        storage.write(use / _COUNT, str(count).encode())
        return map_in_actors(blocks, _Embedding, (run.job.models.embedder, run.job.models.embedder_prompts, kind, use), count)

    resumable.map_rows(
        source=rows,
        id_column=_ID[kind],
        columns=columns,
        transform=embedded,
        destination=destination,
        checkpoints=work / f"{destination.name}-checkpoints",
    )


def embedder_use(work: Path) -> dict[str, Any]:
    """Of the embedders of a step: how many ran side by side, for how long together, and how many characters they read."""
    folders = [work / f"{name}-use" for name in _EMBEDDED]
    found = [artifacts.read_json(path) for folder in folders for path in folder.glob("*.json")]
    return {
        "count": max((int((folder / _COUNT).read_text()) for folder in folders if (folder / _COUNT).is_file()), default=1),
        "start_seconds": round(sum(use["start_seconds"] for use in found), 1),
        "seconds": round(sum(use["seconds"] for use in found), 1),
        "characters": sum(use["characters"] for use in found),
    }


def hold_usable(vectors: np.ndarray, ids: Sequence[str]) -> None:
    """Raise ``ValueError`` when a vector is not of length 1, naming the first such row by its id: what it says is nobody's business."""
    wrong = ~np.isclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-2)  # nan is none either
    if wrong.any():
        raise ValueError(f"models.embedder gives no usable vector for {ids[int(np.argmax(wrong))]}: it is zero, or not of numbers")


def vector_column(vectors: np.ndarray) -> pa.Array:
    """Vectors [rows, dimensions] as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])


def vectors_of(table: pa.Table) -> np.ndarray:
    """The column ``vector`` of a table, float16 [rows, dimensions]."""
    column = table["vector"].combine_chunks()
    column = column if isinstance(column, pa.Array) else column.chunk(0)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def dimensions_of(folder: Path) -> int:
    """How many dimensions the vectors of a folder have."""
    found: Any = storage.parquet(artifacts.parquet_files(folder)[0]).schema_arrow.field("vector").type
    return int(found.list_size)

"""Embedding texts into a folder of vectors, and the index over such folders."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from aloftrag import artifacts, models, schemas
from aloftrag.job import EmbedderPrompts, Job
from aloftrag.retrieval.actors import map_in_actors
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.index import ExactIndex


class _TextEmbedder:
    """Embeds blocks of texts."""

    def __init__(self, model: str, prompts: EmbedderPrompts | None):
        self._embedder = Embedder(model, prompts)

    def __call__(self, block: pa.Table) -> pa.Table:
        vectors = self._embedder.embed(block["text"].to_pylist(), "text").astype(np.float16)
        packed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table({"text_id": block["text_id"], "vector": packed}).cast(schemas.embeddings(vectors.shape[1]))


def embed_texts(job: Job, texts: Path, destination: Path, checkpoints: Path) -> None:
    """Write the vector of each text, resumable at the row."""
    from transformers import AutoConfig

    dimensions = AutoConfig.from_pretrained(models.local_folder(job.models.embedder, "embedder")).hidden_size
    artifacts.map_rows(
        source=texts,
        id_column="text_id",
        columns=["text_id", "text"],
        transform=lambda rows: map_in_actors(rows, _TextEmbedder, (job.models.embedder, job.models.embedder_prompts), job.resources),
        destination=destination,
        schema=schemas.embeddings(dimensions),
        checkpoints=checkpoints,
    )


def load_index(*folders: Path) -> ExactIndex:
    """The index over the vectors in some folders; the id of each text stands in one of them."""
    frame = pl.concat([pl.read_parquet(folder / "*.parquet") for folder in folders if artifacts.parquet_files(folder)])
    vectors = np.asarray(frame["vector"].to_numpy(), np.float32).reshape(frame.height, -1)
    return ExactIndex(frame["text_id"].to_list(), vectors)

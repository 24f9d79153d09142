"""Step 0: read documents, cut them into texts, merge exact copies.

    corpus files -> texts (text_id, text, source, copies), sorted by id, in files split by the beginning of the id

A task per group of source files reads them and writes its texts by id prefix; a task per prefix merges the copies. Not
checkpointed: a killed step starts again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, models, redact, schemas, storage
from aloftrag.artifacts import Run
from aloftrag.corpus import TABLES, WHOLE_FILES, chunker, normalised, read_rows, source_files, text_id
from aloftrag.errors import RunError
from aloftrag.job import Corpus

MAKES = "texts"
BESIDE: tuple[str, ...] = ()
NEEDS: tuple[str, ...] = ()
VERSION = 1

_GROUP_BYTES = 64 << 20  # source files read by one task
_PREFIX_BYTES = 128 << 20  # source bytes whose texts share a file
_BATCH_ROWS = 10_000

# One row read from a source: a text, or the reason why there is none.
_READ = pa.schema(
    [
        pa.field("text_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("source", pa.string()),
        pa.field("drop_reason", pa.string()),
    ]
)


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the texts."""
    corpus = run.job.corpus
    chunker = models.identity(run.job.models.llm, "llm") if corpus.chunk_tokens else None
    return {
        "corpus": corpus.model_dump(mode="json"),
        "corpus files": artifacts.files_digest([storage.at(path) for path in corpus_files(corpus)]),
        "models.llm (its tokens cut the texts)": chunker,
    }


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``texts`` artifact to ``folder``; returns its counts."""
    import ray.data

    corpus = run.job.corpus
    paths = corpus_files(corpus)
    size = sum(storage.at(path).stat().st_size for path in paths)
    digits = _prefix_digits(size)
    parts = artifacts.fresh_folder(work / "parts")
    artifacts.fresh_folder(folder)
    tokenizer = str(models.local_folder(run.job.models.llm, "llm")) if corpus.chunk_tokens else None

    groups = [{"number": number, "paths": group} for number, group in enumerate(_groups(paths))]
    read = ray.data.from_items(groups, override_num_blocks=len(groups)).map(
        lambda row: _read_group(row["number"], row["paths"], corpus, tokenizer, digits, parts)
    )
    counts = pl.DataFrame(read.take_all()).sum().row(0, named=True)

    prefixes = [path.name for path in sorted(parts.glob("*"))]
    if not prefixes:
        raise RunError(f"corpus.paths: no usable text in {len(paths)} files ({_nonzero(counts)})")
    merged = ray.data.from_items([{"prefix": prefix} for prefix in prefixes], override_num_blocks=len(prefixes)).map(
        lambda row: {"texts": merge_copies(parts / row["prefix"], folder / f"{row['prefix']}.parquet")}
    )
    texts = sum(row["texts"] for row in merged.take_all())
    artifacts.hold_schema(folder, schemas.TEXTS)
    if texts < 2:
        raise RunError(f"corpus.paths: {texts} text in {len(paths)} files; at least 2 different texts are needed to tell one from another")
    characters = storage.scan(folder).select(pl.col("text").str.len_chars().sum()).collect().item()
    return {"files": len(paths), **counts, "texts": texts, "copies_merged": counts["read"] - texts, "characters": characters}


def corpus_files(corpus: Corpus) -> list[str]:
    """The files that ``corpus.paths`` names."""
    return source_files(corpus.paths, "corpus.paths", TABLES | WHOLE_FILES)


def merge_copies(part: Path, destination: Path) -> int:
    """Write the distinct texts of one id prefix, sorted by id; returns how many."""
    texts = (
        storage.scan(part)
        .collect()
        .sort("text_id", "source")
        .group_by("text_id", maintain_order=True)
        .agg(pl.col("text").first(), pl.col("source").first(), pl.len().cast(pl.Int64).alias("copies"))
    )
    artifacts.write_table(texts.to_arrow().cast(schemas.TEXTS), destination)
    return texts.height


def _read_group(number: int, paths: list[str], corpus: Corpus, tokenizer: str | None, digits: int, parts: Path) -> dict[str, int]:
    """Read files and write their texts below ``parts``, split by id prefix; returns how many were read and left out."""
    counts = {"read": 0, "empty": 0, "undecodable": 0}
    cut = chunker(tokenizer, corpus.chunk_tokens)
    rows: list[tuple[str, str, str]] = []
    written = 0

    def write() -> None:
        nonlocal written
        frame = pl.DataFrame(rows, schema=["text_id", "text", "source"], orient="row")
        prefixes = frame.with_columns(pl.lit("texts-").add(pl.col("text_id").str.head(digits)).alias("prefix"))
        for (prefix,), part in prefixes.partition_by("prefix", as_dict=True, include_key=False).items():
            artifacts.write_table(part.to_arrow(), parts / str(prefix) / f"{number:06d}-{written:06d}.parquet")
        written += 1
        rows.clear()

    for path in paths:
        for raw in read_rows(path, corpus.text_column):
            if raw is None:
                counts["undecodable"] += 1
                continue
            chunks = [normalised(chunk) for chunk in cut(normalised(raw))]
            kept = [chunk for chunk in chunks if any(character.isalnum() for character in chunk)]
            counts["empty"] += not kept
            counts["read"] += len(kept)
            rows += [(text_id(chunk), chunk, redact.text(path)) for chunk in kept]
            if len(rows) >= _BATCH_ROWS:
                write()
    if rows:
        write()
    return counts


def _groups(paths: list[str]) -> Iterator[list[str]]:
    """Files together up to a size, so that a thousand small files are not a thousand tasks."""
    group: list[str] = []
    size = 0
    for path in paths:
        group.append(path)
        size += storage.at(path).stat().st_size
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _prefix_digits(size: int) -> int:
    """How many digits of the id split the texts into files: from the size of the corpus alone."""
    digits = 0
    while size > _PREFIX_BYTES * 16**digits:
        digits += 1
    return digits


def _nonzero(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "all are without rows"

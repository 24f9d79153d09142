"""Hand-made artifacts: rows as tables of an artifact's schema, cut into files and row groups as a test wants them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def write(folder: Path, schema: pa.Schema, rows: Sequence[Row], files: int = 1, group_rows: int = 256) -> Path:
    """``rows`` as an artifact of so many files, each in row groups of so many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        table = pa.Table.from_pylist(list(rows[number::files]), schema=schema)
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=group_rows)
    return folder


def read(folder: Path, *by: str) -> list[Row]:
    """The rows of an artifact, sorted by some columns."""
    return pl.read_parquet(folder / "*.parquet").sort(*by).to_dicts()


def text_rows(texts: dict[str, str]) -> list[Row]:
    """Rows of ``texts`` by id."""
    return [{"text_id": key, "text": text, "source": "by hand", "copies": 1} for key, text in texts.items()]


def annotation(question_id: str, **values: Any) -> Row:
    """A row of ``annotations`` that nothing speaks against, but for the values given."""
    text_id, _, number = question_id.rpartition("-")
    return {
        "question_id": question_id,
        "text_id": text_id,
        "text_rating": 9.0,
        "text_rating_reply": "09",
        "question": f"What is number {number} about {text_id}?",
        "answer": f"answer {number} of {text_id}",
        "question_rating": None,
        "answer_rating": None,
        "wrong_language": False,
        "refers_to_text": False,
        "copies_instruction": False,
        "error": None,
        "reply": "as it came",
        "question_rating_reply": None,
        "answer_rating_reply": None,
        **values,
    }


def negative(question_id: str, negative_ids: Iterable[str], positive_rank: int = 1) -> Row:
    """A row of ``negatives``."""
    negatives = list(negative_ids)
    return {
        "question_id": question_id,
        "text_id": question_id.rpartition("-")[0],
        "question": "as annotated",
        "negative_ids": negatives,
        "similarities": [0.5] * len(negatives),
        "ranks": list(range(2, len(negatives) + 2)),
        "positive_similarity": 0.9,
        "positive_rank": positive_rank,
        "skipped": [],
        "also_positive": [],
    }

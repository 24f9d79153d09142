"""Do the texts that the guard skipped answer their question? Asked of the language model (``negatives.verify``, step 4)."""

import asyncio
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, languages, schemas, storage
from aloftrag.artifacts import Run
from aloftrag.engine import Completion, Engine, PromptRefused, StartEngine, pool
from aloftrag.prompts import check_answer
from aloftrag.retrieval import guard
from aloftrag.retrieval.text_store import TextStore

Row = dict[str, Any]

_CHECKED = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("text_ids", pa.list_(pa.string()), nullable=False),
        pa.field(
            "answers", pa.list_(pa.bool_()), nullable=False
        ),  # null: neither yes nor no, too long to be asked about, or the engine died
    ]
)
_TO_CHECK = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("skipped", pa.list_(pa.struct([pa.field("text_id", pa.string()), pa.field("text", pa.string())])), nullable=False),
    ]
)


def verify(run: Run, mined: Path, folder: Path, work: Path, start_engine: StartEngine) -> dict[str, int]:
    """Ask the language model whether skipped texts answer their question; those that do are ``also_positive``. Returns counts."""
    asked = work / "to_verify"
    if not storage.is_whole(asked):
        with storage.published(asked) as unfinished:
            _write_skipped_texts(mined, run.artifact("texts"), unfinished)
    checked = _checked(run, asked, work, start_engine) if artifacts.parquet_files(asked) else pl.DataFrame(_CHECKED.empty_table())
    artifacts.fresh_folder(folder)
    for path in artifacts.parquet_files(mined):
        rows = artifacts.read_file(path, schemas.NEGATIVES.names).to_pylist()
        of_file = checked.filter(pl.col("question_id").is_in([row["question_id"] for row in rows]))
        verdicts = {question_id: dict(zip(ids, answers, strict=True)) for question_id, ids, answers in of_file.iter_rows()}
        for row in rows:
            verdict = verdicts.get(row["question_id"], {})
            row["skipped"] = [{**text, "answers": verdict.get(text["text_id"])} for text in row["skipped"]]
            row["also_positive"] = [text["text_id"] for text in row["skipped"] if text["answers"]]
        artifacts.write_table(pa.Table.from_pylist(rows, schema=schemas.NEGATIVES), folder / path.name)
    return {"unusable_verdicts": checked["answers"].explode().null_count()}


def _checked(run: Run, asked: Path, work: Path, start_engine: StartEngine) -> pl.DataFrame:
    """``_CHECKED``: by question, whether the texts of ``asked`` answer it, according to the model."""
    language = languages.english_name(run.job.language)
    question = pool.Question(functools.partial(check_row, language=language), _not_checked, "question_id", _CHECKED)
    checked = work / "verified"
    pool.ask_rows(asked, question, start_engine, run, checked)
    return storage.scan(checked).collect()


def _write_skipped_texts(mined: Path, texts: Path, folder: Path) -> None:
    """The questions for which texts were skipped, with those texts; in whole blocks, so that an engine has enough to do."""
    store, remaining, numbers = TextStore(texts), _with_skipped_texts(mined), itertools.count()
    while rows := list(itertools.islice(remaining, artifacts.BLOCK_ROWS)):
        contents = store.texts(text["text_id"] for row in rows for text in row["skipped"])
        for row in rows:
            row["skipped"] = [{"text_id": text["text_id"], "text": contents[text["text_id"]]} for text in row["skipped"]]
        artifacts.write_table(pa.Table.from_pylist(rows, schema=_TO_CHECK), folder / f"{next(numbers):06d}.parquet")


def _with_skipped_texts(mined: Path) -> Iterator[Row]:
    for path in artifacts.parquet_files(mined):
        for batch in artifacts.read_file(path, ["question_id", "question", "skipped"]).to_batches(artifacts.BLOCK_ROWS):
            for row in batch.to_pylist():
                row["skipped"] = [text for text in row["skipped"] if text["reason"] != guard.COPY_OF_NEGATIVE]
                if row["skipped"]:
                    yield row


async def check_row(engine: Engine, row: Row, language: str) -> Row:
    """Which of a question's skipped texts answer it: a row of ``_CHECKED``."""

    async def answers(text: Row) -> bool | None:
        try:
            completion: Completion = await engine.complete(check_answer.prompt(text["text"], row["question"], language))
        except PromptRefused:
            return None
        return check_answer.read(completion.text) if completion.ended else None

    verdicts = await asyncio.gather(*map(answers, row["skipped"]))
    return {"question_id": row["question_id"], "text_ids": [text["text_id"] for text in row["skipped"]], "answers": verdicts}


def _not_checked(row: Row, reason: str) -> Row:
    ids = [text["text_id"] for text in row["skipped"]]
    return {"question_id": row["question_id"], "text_ids": ids, "answers": [None] * len(ids)}

"""The questions of the evaluation: gold tables, or the generated questions of held-out texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from aloftrag import seeds, storage
from aloftrag.corpus import TABLES, chunker, normalised, source_files, text_id
from aloftrag.errors import UsageError
from aloftrag.job import Job

GOLD_COLUMNS = ["context", "question", "answer"]


@dataclass(frozen=True)
class Questions:
    """What is asked: one row per question, and texts that are not in the corpus."""

    rows: pl.DataFrame  # question_id, text_id, question, gold_answers (list), also_positive (list)
    texts: dict[str, str]  # by id: the contexts of gold questions
    counts: dict[str, int]


def gold_files(job: Job) -> list[str]:
    """The files that ``evaluation.gold`` names."""
    return source_files(job.evaluation.gold_paths, "evaluation.gold", TABLES)


def gold_questions(job: Job, tokenizer: str | None) -> Questions:
    """The questions of the gold tables.

    The positive is the text that the context is; with ``chunk_tokens`` it is the one chunk of the context that holds an accepted
    answer, and a question with none or several is left out and counted.
    """
    cut = chunker(tokenizer, job.corpus.chunk_tokens)
    accepted: dict[tuple[str, str], dict[str, None]] = {}  # of each context and question; a table may have a row for each answer
    incomplete = 0
    for file in gold_files(job):
        for row in read_gold(file):
            answers = _accepted(row)
            if not answers or not all(isinstance(row.get(key), str) and row[key].strip() for key in ("context", "question")):
                incomplete += 1
                continue
            accepted.setdefault((normalised(row["context"]), row["question"].strip()), {}).update(dict.fromkeys(answers))
    rows: list[tuple[str, str, str, list[str]]] = []
    texts: dict[str, str] = {}
    left_out = 0
    for (context, question), of_question in accepted.items():
        chunks = [normalised(chunk) for chunk in cut(context)]
        holding = [chunk for chunk in chunks if len(chunks) == 1 or any(answer in chunk for answer in of_question)]
        if len(holding) != 1:
            left_out += 1
            continue
        (positive,) = holding
        positive_id = text_id(positive)
        texts[positive_id] = positive
        rows.append((f"gold-{text_id(f'{positive_id} {question}')}", positive_id, question, [*of_question]))
    schema: dict[str, Any] = {
        "question_id": pl.String,
        "text_id": pl.String,
        "question": pl.String,
        "gold_answers": pl.List(pl.String),
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row").unique("question_id", keep="first", maintain_order=True)
    frame = frame.with_columns(pl.lit([], pl.List(pl.String)).alias("also_positive"))
    return Questions(frame, texts, {"without_one_positive": left_out, "incomplete": incomplete})


def held_out_questions(annotations: Path, negatives: Path, selection: Path) -> Questions:
    """The kept questions of the texts that training never asks about; their generated answers stand for gold."""
    held_out = storage.scan(selection).filter(pl.col("split") == "held_out").select("question_id")
    rows = (
        storage.scan(annotations)
        .join(held_out, on="question_id")
        .join(storage.scan(negatives).select("question_id", "also_positive"), on="question_id")
        .select("question_id", "text_id", "question", pl.concat_list("answer").alias("gold_answers"), "also_positive")
        .collect()
    )
    return Questions(rows, {}, {})


def draw(rows: pl.DataFrame, count: int | None, seed: int) -> pl.DataFrame:
    """At most ``count`` questions, drawn by (seed, question id) and spread: a second about a text only after a first about each."""
    drawn = rows.with_columns(
        pl.col("question_id").map_elements(lambda row_id: seeds.draw(seed, "question", row_id), return_dtype=pl.Float64).alias("draw")
    )
    drawn = drawn.with_columns(pl.col("draw").rank("ordinal").over("text_id").alias("round"))
    return drawn.sort("round", "draw").head(rows.height if count is None else count).drop("round", "draw").sort("question_id")


def read_gold(file: str, key: str = "evaluation.gold") -> list[dict[str, Any]]:
    """The rows of a gold table, nothing guessed: an answer of 0730 stays one. Raises ``UsageError`` where it can't be read."""
    suffix = Path(file).suffix.lower()
    try:
        if suffix == ".parquet":
            return pl.read_parquet(file, glob=False).to_dicts()
        if suffix == ".csv":
            return pl.scan_csv(file, infer_schema=False, glob=False).collect().to_dicts()
        content = storage.at(file).read_text(encoding="utf-8-sig")
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise UsageError(f"{key}: {file}: not readable ({str(error).splitlines()[0]})") from error
    lines = enumerate(content.split("\n"), 1)  # other line ends may stand inside an answer
    return [_json_row(line, f"{key}: {file}, line {number}") for number, line in lines if line.strip()]


def _json_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    except ValueError as error:
        raise UsageError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UsageError(f"{place}: expected an object")
    return row


def _accepted(row: dict[str, Any]) -> list[str]:
    """The accepted answers of a gold row, the first one first; ``answers`` is a list where there are several."""
    more = row.get("answers")
    answers = [row.get("answer"), *(more if isinstance(more, list) else [])]
    return list(dict.fromkeys(text for answer in answers if answer is not None and (text := normalised(str(answer)))))

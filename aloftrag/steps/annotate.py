"""Steps 1 to 3 (paper 3.1 to 3.3): rate each text, write questions and answers, optionally rate those.

    texts -> annotations, one row per question, one with nulls for a text without

One coroutine per text asks an engine: rate the text; below the threshold stop; write the questions; rate them. Nothing is
dropped here: a reply that cannot be used becomes null and is counted against ``annotation.max_failed``.
"""

import asyncio
import functools
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, languages, models, schemas, storage
from aloftrag.artifacts import Run
from aloftrag.engine import Completion, Engine, PromptRefused, StartEngine, annotator, pool
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.prompts import flaws, rate_qa, rate_text, rating, write_qa
from aloftrag.prompts.chat import encode_content
from aloftrag.prompts.layout import Layout, cheaper
from aloftrag.prompts.worked_examples import worked_examples
from aloftrag.prompts.write_qa import QuestionAnswer

MAKES = "annotations"
BESIDE: tuple[str, ...] = ()
NEEDS: tuple[str, ...] = ("texts",)
VERSION = 4

Row = dict[str, Any]

_LAYOUT_SAMPLE = 1000  # texts; ids are hashes, so the first are a random sample


def with_layout(run: Run) -> Run:
    """The run with ``annotation.layout: auto`` decided: what is cheaper for a sample of its texts."""
    job = run.job
    if job.annotation.layout != "auto":
        return run
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.local_folder(job.models.llm, "llm"))
    sample = storage.scan(run.artifact("texts")).select("text").head(_LAYOUT_SAMPLE).collect()["text"]
    text_tokens = sum(len(encode_content(tokenizer, text)) for text in sample) / len(sample)
    of_questions = [write_qa.INSTRUCTION]
    if job.annotation.rate_qa:
        of_questions += [rate_qa.QUESTION_INSTRUCTION, rate_qa.ANSWER_INSTRUCTION]
    calls = [(rate_text.INSTRUCTION, 1), *((instruction, job.annotation.questions_per_text) for instruction in of_questions)]
    instructions = [(len(encode_content(tokenizer, instruction)), times) for instruction, times in calls]
    return run.with_settings("annotation", layout=cheaper(text_tokens, instructions))


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the annotations, beside the texts."""
    annotation = run.job.annotation.model_dump(mode="json", exclude={"drop", "qa_threshold", "max_failed"})
    if not run.job.annotation.stop_early:
        del annotation["text_threshold"]  # every text gets its questions, so the threshold only selects afterwards
    return {
        "language": run.job.language,
        "models.llm": models.identity(run.job.models.llm, "llm"),
        "annotation": annotation,
        "training.max_tokens": run.job.training.max_tokens,  # the longest prompt
        "engine.options": run.job.engine.options,
    }


def make(run: Run, folder: Path, work: Path, start_engine: StartEngine | None = None) -> dict[str, Any]:
    """Write the ``annotations`` artifact; returns its counts.

    Raises ``RunError`` when more than ``annotation.max_failed`` of the texts came to nothing.
    """
    annotated = work / "annotated_texts"
    question = pool.Question(functools.partial(annotate_text, job=run.job), _set_aside, "text_id", schemas.ANNOTATED_TEXTS)
    pool.ask_rows(run.artifact("texts"), question, start_engine or annotator(run), run, annotated, columns=["text_id", "text"])
    artifacts.fresh_folder(folder)
    artifacts.map_blocks(artifacts.read_blocks(annotated), explode_questions).write_parquet(str(folder))
    artifacts.hold_schema(folder, schemas.ANNOTATIONS)
    _hold_ids(annotated, folder)
    counts = _counts(folder)
    _hold_budget(folder, counts, run.job.annotation.max_failed)
    return {**counts, "engines": pool.engine_use(annotated)}


async def annotate_text(engine: Engine, row: Row, job: Job) -> Row:
    """All calls about one text: a row of ``schemas.ANNOTATED_TEXTS`` for a row of ``text_id`` and ``text``."""
    text, annotation = row["text"], job.annotation
    language = languages.english_name(job.language)
    examples = worked_examples(job.language, annotation.worked_examples)
    result: Row = {"text_id": row["text_id"], "questions": []}
    try:
        completion = await engine.complete(rate_text.prompt(text, language, examples, _layout(job)))
        result["text_rating"], result["text_rating_reply"] = _rating(completion), completion.text
        result["text_rating_expected"] = rating.expected(completion.first_tokens)
        if result["text_rating"] is None:
            result["error"] = f"no rating in the reply {result['text_rating_reply']!r}"
            if annotation.stop_early:
                return result
        elif annotation.stop_early and result["text_rating"] < annotation.text_threshold:
            return result
        parts: list[str | None] = [None]
        if annotation.questions_per_text > 1:
            parts = [*write_qa.parts(text, annotation.questions_per_text)] or [None]
        questions = await asyncio.gather(*(_question(engine, text, part, job) for part in parts))
    except PromptRefused as error:
        return {**result, "error": str(error)}
    result["questions"] = without_repeats(questions)
    return result


def _set_aside(row: Row, reason: str) -> Row:
    return {"text_id": row["text_id"], "questions": [], "error": reason}


async def _question(engine: Engine, text: str, part: str | None, job: Job) -> Row:
    """Write one question about a text or a part of it, and rate it when asked to."""
    language = languages.english_name(job.language)
    examples = worked_examples(job.language, job.annotation.worked_examples)
    completion = await engine.complete(write_qa.prompt(text, part, job.language, language, examples, _layout(job)))
    question: Row = {"reply": completion.text}
    written = write_qa.read(completion.text) if completion.ended else None
    if written is None:
        return {
            **question,
            "error": "the reply was cut at the token limit" if not completion.ended else "no question and answer in the reply",
        }
    if flaws.answer_repeats_question(written.question, written.answer):
        return {**question, "error": "the answer repeats the question"}
    question |= {
        "question": written.question,
        "answer": written.answer,
        "wrong_language": flaws.wrong_language(f"{written.question} {written.answer}", job.language),
        "refers_to_text": flaws.refers_to_text(written.question, job.language),
        "copies_instruction": flaws.copies_instruction(written.question),
    }
    if job.annotation.rate_qa:
        question |= await _rate_question(engine, text, written, language, _layout(job))
    return question


async def _rate_question(engine: Engine, text: str, written: QuestionAnswer, language: str, layout: Layout) -> Row:
    of_question, of_answer = await asyncio.gather(
        engine.complete(rate_qa.question_prompt(text, written, language, layout)),
        engine.complete(rate_qa.answer_prompt(text, written, language, layout)),
    )
    return {
        "question_rating": _rating(of_question),
        "question_rating_reply": of_question.text,
        "answer_rating": _rating(of_answer),
        "answer_rating_reply": of_answer.text,
    }


def _rating(completion: Completion) -> float | None:
    """A rating; None when the reply has none or was cut."""
    return rating.read(completion.text) if completion.ended else None


def _layout(job: Job) -> Layout:
    layout = job.annotation.layout
    assert layout != "auto", "decided before the step"
    return layout


def without_repeats(questions: list[Row]) -> list[Row]:
    """The questions of a text; one that repeats an earlier one keeps its reply and gets an error instead."""
    seen: set[str] = set()
    kept = []
    for question in questions:
        asked = write_qa.normalised(question.get("question") or "")
        if asked and asked in seen:
            question = {"reply": question["reply"], "error": "repeats another question about this text"}
        seen.add(asked)
        kept.append(question)
    return kept


def explode_questions(texts: pa.Table) -> pa.Table:
    """One row of ``schemas.ANNOTATIONS`` per question of ``schemas.ANNOTATED_TEXTS``, one with nulls for a text without."""
    rows = []
    for text in texts.to_pylist():
        about_text = {key: text[key] for key in ("text_id", "text_rating", "text_rating_expected", "text_rating_reply")}
        for number, question in enumerate(text["questions"] or [{"error": text["error"]}]):
            rows.append({**about_text, "question_id": f"{text['text_id']}-{number}", **question})
    return pa.Table.from_pylist(rows, schema=schemas.ANNOTATIONS)


def _hold_ids(annotated: Path, folder: Path) -> None:
    """Every text is there, and no question twice."""
    ids = pl.len(), pl.col("question_id").n_unique(), pl.col("text_id").n_unique().alias("texts")
    rows, questions, texts = storage.scan(folder).select(*ids).collect().row(0)
    expected = artifacts.count_rows(annotated)
    if rows != questions or texts != expected:
        raise RunError(
            f"{folder}: {rows} rows with {questions} ids of {texts} texts, for {expected} texts; run this step again with --redo"
        )


def _counts(folder: Path) -> dict[str, Any]:
    rows = storage.scan(folder)
    by_text = rows.group_by("text_id").agg(
        pl.col("text_rating").is_not_null().any().alias("rated"),
        pl.col("question").is_not_null().any().alias("has_question"),
        pl.col("error").is_not_null().all().alias("failed"),
    )
    counts = by_text.select(
        pl.len().alias("texts"),
        pl.col("rated").sum(),
        pl.col("has_question").sum().alias("texts_with_questions"),
        pl.col("failed").sum(),
    ).collect()
    questions = rows.select(pl.col("question").is_not_null().sum().alias("questions")).collect()
    return {**counts.row(0, named=True), **questions.row(0, named=True)}


def _hold_budget(folder: Path, counts: dict[str, Any], max_failed: float) -> None:
    if counts["failed"] <= max_failed * counts["texts"]:
        return
    rows = storage.scan(folder).collect()
    failed = rows.filter(pl.col("error").is_not_null().all().over("text_id")).unique("text_id", keep="first").sort("text_id").head(3)
    shown = "; ".join(f"{row['text_id']}: {row['error']} ({(row['reply'] or '')[:80]!r})" for row in failed.iter_rows(named=True))
    raise RunError(
        f"annotate: {counts['failed']} of {counts['texts']} texts came to nothing, "
        f"more than annotation.max_failed = {max_failed}: {shown}. "
        "Try another model or worked_examples; or, to go on with what there is, a higher max_failed."
    )

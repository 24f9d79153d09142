"""Step 5a (paper 3.5): select what is trained on, and put questions and contexts into chats.

    annotations, negatives, clusters, texts -> chats (a row per conversation, as it is written and as the model reads it),
    selection (a row per question, with the reason why it was left out)

The one place where anything is dropped. A chat is anchored at one question: its contexts are that question's positive and
negatives, shuffled by (seed, question id). With ``questions_per_chat`` > 1 further turns ask questions of the other contexts. A text
that step 4 skipped for a question since it may answer it is a right citation if it does, and else does not stand beside it.
Chats are planned here (``training.chats``) and written in tasks over the cluster.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, languages, models, schemas, seeds, storage
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.prompts import no_answer
from aloftrag.retrieval import guard
from aloftrag.retrieval.text_store import TextStore
from aloftrag.training.chats import ChatPlan, chat_row, plan_chats

MAKES = "chats"
BESIDE: tuple[str, ...] = ("selection",)
NEEDS: tuple[str, ...] = ("texts", "annotations", "negatives")
VERSION = 5

_FLAWS = ("wrong_language", "refers_to_text", "copies_instruction")
TOO_LONG = "longer than training.max_tokens with its own text alone"
# Of annotations: all but the replies as they were.
_READ = ("question_id", "text_id", "question", "answer", "text_rating", "question_rating", "answer_rating", *_FLAWS)
_COUNTED = ("chats", "trained", "turns", "tokens", "unanswerable", "contexts_left_out")


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change selection and chats, beside what they are made from."""
    job = run.job
    return {
        "annotation.text_threshold": job.annotation.text_threshold,
        "annotation.rate_qa": job.annotation.rate_qa,
        "annotation.qa_threshold": job.annotation.qa_threshold,
        "annotation.drop": job.annotation.drop.model_dump(),
        "negatives.require_self_retrieval": job.negatives.require_self_retrieval,
        "negatives.contexts": job.get("negatives.contexts"),
        "training.questions_per_chat": job.training.questions_per_chat,
        "training.unanswerable": job.training.unanswerable,
        "training.max_tokens": job.training.max_tokens,
        "training.validation": job.training.validation,
        "models.llm (its tokens are counted)": models.identity(job.models.llm, "llm"),
        "language": job.language,
        "evaluation.held_out": job.evaluation.held_out if job.evaluation.gold is None else None,
        "seed": job.seed,
    }


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``chats`` artifact and beside it ``selection``; returns the counts by split and by drop reason."""
    del work  # quick: made anew after a kill
    annotations = storage.scan(run.artifact("annotations")).select(_READ).collect()
    negatives = (
        storage.scan(run.artifact("negatives"))
        .select("question_id", "positive_rank", "negative_ids", "also_positive", doubtful())
        .collect()
    )
    clusters = storage.scan(run.artifact("clusters")).collect()
    selection = select(annotations, negatives, clusters, run.job)
    kept = (
        selection.filter(pl.col("split").is_in(["train", "validation"]))
        .join(annotations.select("question_id", "question", "answer"), on="question_id")
        .join(
            negatives.select("question_id", "negative_ids", *(with_copies(name, clusters) for name in ("also_positive", "doubtful"))),
            on="question_id",
        )
    )
    counts, too_long = _write_all(kept, run, artifacts.fresh_folder(folder))
    is_too_long = pl.col("question_id").is_in(too_long)
    selection = selection.with_columns(
        pl.when(is_too_long).then(pl.lit(TOO_LONG)).otherwise(pl.col("drop_reason")).alias("drop_reason"),
        pl.when(~is_too_long).then(pl.col("split")).alias("split"),
    )
    artifacts.write_table(
        selection.to_arrow().cast(schemas.SELECTION), artifacts.fresh_folder(run.artifact("selection")) / "selection.parquet"
    )
    reasons = dict(selection["drop_reason"].drop_nulls().value_counts(sort=True).rows())
    if not counts.pop("trained"):
        raise RunError(f"assemble_chats: no question is left to train on; left out: {reasons}. Loosen the settings that drop them.")
    if run.job.evaluation.gold is None and "held_out" not in set(selection["split"]):
        raise RunError(
            f"assemble_chats: evaluation.held_out = {run.job.evaluation.held_out} holds out no text that has a usable question; "
            "set it higher, or give evaluation.gold"
        )
    splits = dict(selection["split"].drop_nulls().value_counts().rows())
    return {"questions": selection.height, "kept": splits, "left_out": reasons, **counts}


def select(annotations: pl.DataFrame, negatives: pl.DataFrame, clusters: pl.DataFrame, job: Job) -> pl.DataFrame:
    """``schemas.SELECTION``: for each annotated row its split, or the first reason that holds against it."""
    drop = job.annotation.drop
    flawed = [name for name in _FLAWS if getattr(drop, name)]
    rating_needed = job.annotation.text_threshold > 0
    reasons: list[tuple[pl.Expr, str]] = [
        (pl.col("text_rating") < job.annotation.text_threshold, "text rated too low"),
        (pl.col("text_rating").is_null() & rating_needed, "text without a rating"),
        (pl.col("question").is_null(), "no usable question"),
        *((pl.col(name).fill_null(False), name.replace("_", " ")) for name in flawed),
    ]
    if job.annotation.rate_qa and job.annotation.qa_threshold:
        for name in ("question_rating", "answer_rating"):
            reasons.append((pl.col(name).fill_null(-1) < job.annotation.qa_threshold, f"{name.partition('_')[0]} rated too low"))
    if job.negatives.require_self_retrieval:
        reasons.append((pl.col("positive_rank") > 1, "does not find its own text first"))
    reason = pl.lit(None, pl.String)
    for holds, name in reversed(reasons):
        reason = pl.when(holds).then(pl.lit(name)).otherwise(reason)

    split = clusters.with_columns(
        pl.col("cluster_id").map_elements(lambda cluster: split_of(cluster, job), return_dtype=pl.String).alias("split")
    )
    return (
        annotations.join(negatives.select("question_id", "positive_rank"), on="question_id", how="left")
        .join(split.select("text_id", "split"), on="text_id", how="left")
        .with_columns(reason.alias("drop_reason"))
        .with_columns(pl.when(pl.col("drop_reason").is_null()).then(pl.col("split")).alias("split"))
        .select(schemas.SELECTION.names)
        .sort("question_id")
    )


def doubtful() -> pl.Expr:
    """The texts that step 4 skipped since they may answer the question, and of which the language model did not say whether they do."""
    skipped = pl.element().struct
    may_answer = (skipped.field("reason") != guard.COPY_OF_NEGATIVE) & skipped.field("answers").is_null()
    return pl.col("skipped").list.eval(pl.element().filter(may_answer).struct.field("text_id")).alias("doubtful")


def with_copies(column: str, clusters: pl.DataFrame) -> pl.Expr:
    """A list of texts with their near-duplicates: step 4 stops at the last negative, and a copy may lie further down."""
    copied = clusters.filter(pl.len().over("cluster_id") > 1)
    if copied.is_empty():
        return pl.col(column)
    cluster_of = dict(copied.select("text_id", "cluster_id").iter_rows())
    members = dict(copied.group_by("cluster_id").agg("text_id").iter_rows())

    def of_texts(texts: pl.Series) -> list[str]:
        return sorted({other for text_id in texts for other in members.get(cluster_of.get(text_id, ""), [text_id])})

    return pl.col(column).map_elements(of_texts, return_dtype=pl.List(pl.String))


def split_of(cluster_id: str, job: Job) -> str:
    """What the questions of a cluster are for: train, validation (the loss), or held_out (the evaluation without gold)."""
    if job.evaluation.gold is None and seeds.draw(job.seed, "held_out", cluster_id) < job.evaluation.held_out:
        return "held_out"
    if seeds.draw(job.seed, "validation", cluster_id) < job.training.validation:
        return "validation"
    return "train"


def _write_all(kept: pl.DataFrame, run: Run, folder: Path) -> tuple[dict[str, int], set[str]]:
    """Write chats until each kept question is asked; returns counts, and the questions that are too long for a chat.

    A chat that was cut to ``training.max_tokens`` may have lost a question that was to be asked in it: it is asked in another then.
    """
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
    too_long: set[str] = set()
    files = itertools.count()
    while kept.height:
        done = set()
        for written in _in_tasks(plan_chats(kept, run.job), run, folder, files):
            counts.update({name: written[name] for name in _COUNTED})
            too_long |= set(written["too_long"])
            done |= {*written["too_long"], *written["asked"]}
        kept = kept.filter(~pl.col("question_id").is_in(done))
    return dict(counts), too_long


def _in_tasks(plans: Iterable[ChatPlan], run: Run, folder: Path, files: Iterator[int]) -> Iterator[dict[str, Any]]:
    """What ``_write_chats`` returns of all plans, in tasks over the cluster, a few at a time."""
    import ray

    write = ray.remote(num_cpus=1, max_retries=-1)(_write_chats)
    at_once = 2 * int(ray.cluster_resources()["CPU"])
    running: list[Any] = []
    remaining = iter(plans)
    while batch := list(itertools.islice(remaining, artifacts.BLOCK_ROWS)):
        if len(running) == at_once:
            done, running = ray.wait(running)
            yield from ray.get(done)
        running.append(write.remote(batch, run, folder / f"chats-{next(files):06d}.parquet"))
    yield from ray.get(running)


def _write_chats(plans: Sequence[ChatPlan], run: Run, destination: Path) -> dict[str, Any]:
    """Write one file of chats; returns counts, and which questions are asked or are too long to be asked about their own text."""
    from transformers import AutoTokenizer

    job = run.job
    tokenizer = AutoTokenizer.from_pretrained(models.local_folder(job.models.llm, "llm"))
    longest = models.longest_prompt(job.models.llm, job.training.max_tokens)
    language = languages.english_name(job.language)
    statement = no_answer.statement(job.language) if job.training.unanswerable else None
    texts = TextStore(run.artifact("texts")).texts(text for plan in plans for text in plan.context_ids)
    rows = [chat_row(plan, texts, language, statement, tokenizer, longest) for plan in plans]
    written = [row for row in rows if row]
    artifacts.write_table(pa.Table.from_pylist(written, schema=schemas.CHATS), destination)
    return {
        "too_long": [plan.chat_id for plan, row in zip(plans, rows, strict=True) if row is None],
        "asked": [question for row in written for question in row["question_ids"]],
        "chats": len(written),
        "trained": sum(row["split"] == "train" for row in written),
        "turns": sum(len(row["question_ids"]) for row in written),
        "tokens": sum(len(row["token_ids"]) for row in written),
        "unanswerable": sum(row["positive_positions"].count(None) for row in written),
        "contexts_left_out": sum(len(plan.context_ids) - len(row["context_ids"]) for plan, row in zip(plans, rows, strict=True) if row),
    }

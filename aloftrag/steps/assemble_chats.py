"""Step 5a (paper 3.5): select what is trained on, and put questions and contexts into chats.

    annotations, negatives, clusters, texts -> chats (a row per conversation), selection (a row per question, with the reason
    why it was left out)

The one place where anything is dropped. A chat is anchored at one question: its contexts are that question's positive and
negatives, shuffled by (seed, question id). With ``questions_per_chat`` > 1 further turns ask questions of the other contexts. A text
that step 4 skipped for a question since it may answer it is a right citation if it does, and else does not stand beside it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import artifacts, languages, schemas, seeds
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.retrieval import guard
from aloftrag.retrieval.text_store import TextStore

MAKES = "chats"
BESIDE: tuple[str, ...] = ("selection",)
NEEDS: tuple[str, ...] = ("texts", "annotations", "negatives")
VERSION = 3

_OFTEN_ENOUGH = 2


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change selection and chats, beside what they are made from."""
    job = run.job
    return {
        "annotation.text_threshold": job.annotation.text_threshold,
        "annotation.rate_qa": job.annotation.rate_qa,
        "annotation.qa_threshold": job.annotation.qa_threshold,
        "annotation.drop": job.annotation.drop.model_dump(),
        "negatives.require_self_retrieval": job.negatives.require_self_retrieval,
        "training.questions_per_chat": job.training.questions_per_chat,
        "training.validation": job.training.validation,
        "evaluation.held_out": job.evaluation.held_out if job.evaluation.gold is None else None,
        "seed": job.seed,
    }


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``chats`` artifact and beside it ``selection``; returns the counts by split and by drop reason."""
    del work  # quick: made anew after a kill
    annotations = pl.read_parquet(run.artifact("annotations") / "*.parquet")
    negatives = (
        pl.scan_parquet(run.artifact("negatives") / "*.parquet")
        .select("question_id", "positive_rank", "negative_ids", "also_positive", doubtful())
        .collect()
    )
    clusters = pl.read_parquet(run.artifact("clusters") / "*.parquet")
    selection = select(annotations, negatives, clusters, run.job)
    artifacts.write_table(
        selection.to_arrow().cast(schemas.SELECTION), artifacts.fresh_folder(run.artifact("selection")) / "selection.parquet"
    )
    kept = (
        selection.filter(pl.col("split").is_in(["train", "validation"]))
        .join(annotations.select("question_id", "question", "answer"), on="question_id")
        .join(
            negatives.select("question_id", "negative_ids", *(with_copies(name, clusters) for name in ("also_positive", "doubtful"))),
            on="question_id",
        )
    )
    artifacts.fresh_folder(folder)
    plans = list(plan_chats(kept, run.job))
    store = TextStore(run.artifact("texts"))
    for number, start in enumerate(range(0, len(plans), artifacts.BLOCK_ROWS)):
        batch = plans[start : start + artifacts.BLOCK_ROWS]
        texts = store.texts(text for plan in batch for text in plan.context_ids)
        rows = [render(plan, texts, languages.english_name(run.job.language)) for plan in batch]
        artifacts.write_table(pa.Table.from_pylist(rows, schema=schemas.CHATS), folder / f"chats-{number:06d}.parquet")
    if not any(plan.split == "train" for plan in plans):
        reasons = selection["drop_reason"].drop_nulls().value_counts(sort=True).rows()
        raise RunError(f"assemble_chats: no question is left to train on; left out: {dict(reasons)}. Loosen the settings that drop them.")
    if run.job.evaluation.gold is None and "held_out" not in set(selection["split"]):
        raise RunError(
            f"assemble_chats: evaluation.held_out = {run.job.evaluation.held_out} holds out no text that has a usable question; "
            "set it higher, or give evaluation.gold"
        )
    return _counts(selection, plans)


def select(annotations: pl.DataFrame, negatives: pl.DataFrame, clusters: pl.DataFrame, job: Job) -> pl.DataFrame:
    """``schemas.SELECTION``: for each annotated row its split, or the first reason that holds against it."""
    drop = job.annotation.drop
    flawed = [name for name in ("wrong_language", "refers_to_text", "copies_instruction") if getattr(drop, name)]
    rating_needed = job.annotation.text_threshold > 0
    reasons: list[tuple[pl.Expr, str]] = [
        (pl.col("text_rating") < job.annotation.text_threshold, "text rated too low"),
        (pl.col("text_rating").is_null() & rating_needed, "text without a rating"),
        (pl.col("question").is_null(), "no usable question"),
        *((pl.col(name).fill_null(False), name.replace("_", " ")) for name in flawed),
    ]
    if job.annotation.rate_qa:
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


@dataclass(frozen=True)
class Turn:
    """One question of a chat."""

    question_id: str
    text_id: str
    question: str
    answer: str
    also_positive: frozenset[str] = frozenset()  # texts that answer it too
    doubtful: frozenset[str] = frozenset()  # texts that may answer it too

    def fits(self, context_ids: Iterable[str]) -> bool:
        """Whether it is known for each context if it answers the question."""
        return self.doubtful.isdisjoint(context_ids)


@dataclass(frozen=True)
class ChatPlan:
    """A chat before its texts are fetched."""

    chat_id: str  # the id of the question whose contexts these are
    split: str
    context_ids: list[str]
    turns: list[Turn]


def plan_chats(kept: pl.DataFrame, job: Job) -> Iterator[ChatPlan]:
    """Chats over the kept questions (columns question_id, text_id, question, answer, negative_ids, also_positive, doubtful, split).

    The questions of a text are spread over its chats, so that of the turns of a chat each context gets about the same
    share; the anchor's own group is asked, the rest is filled with questions of the other contexts of the same split. A chat
    whose own questions have all been asked ``_OFTEN_ENOUGH`` times by then is left out: it would teach little that is new.
    """
    per_chat = job.training.questions_per_chat
    for (split,), part in kept.sort("question_id").partition_by("split", as_dict=True).items():
        by_text: dict[str, list[Turn]] = {}
        negative_ids: dict[str, list[str]] = {}
        for row in part.iter_rows(named=True):
            turn = Turn(
                row["question_id"],
                row["text_id"],
                row["question"],
                row["answer"],
                frozenset(row["also_positive"]),
                frozenset(row["doubtful"]) - {row["text_id"]},  # as a copy of its copy
            )
            by_text.setdefault(row["text_id"], []).append(turn)
            negative_ids[row["question_id"]] = row["negative_ids"]
        own_share = math.ceil(per_chat / job.contexts)
        times_asked: Counter[str] = Counter()
        for text_id, turns in by_text.items():
            while turns:
                context_ids = [text_id, *negative_ids[turns[0].question_id]]
                own = [turns[0], *(turn for turn in turns[1:] if turn.fits(context_ids))][:own_share]  # the first's own negatives fit it
                turns = [turn for turn in turns if turn not in own]
                if all(times_asked[turn.question_id] >= _OFTEN_ENOUGH for turn in own):
                    continue
                random = seeds.generator(job.seed, "chat", own[0].question_id)
                others = [turn for context in context_ids[1:] for turn in by_text.get(context, []) if turn.fits(context_ids)]
                asked = own + random.sample(others, min(len(others), per_chat - len(own)))
                times_asked.update(turn.question_id for turn in asked)
                random.shuffle(asked)
                random.shuffle(context_ids)
                yield ChatPlan(own[0].question_id, str(split), context_ids, asked)


def render(plan: ChatPlan, texts: dict[str, str], language: str) -> dict[str, Any]:
    """A row of ``schemas.CHATS``; ``language`` is an English name."""
    positions = [plan.context_ids.index(turn.text_id) + 1 for turn in plan.turns]
    messages = rag.first_turns([texts[context] for context in plan.context_ids], plan.turns[0].question, language)
    for number, (turn, position) in enumerate(zip(plan.turns, positions, strict=True)):
        if number:
            messages.append(rag.next_turn(turn.question))
        right = [number for number, context in enumerate(plan.context_ids, 1) if number == position or context in turn.also_positive]
        messages.append(rag.reply_turn(right, turn.answer))
    return {
        "chat_id": plan.chat_id,
        "split": plan.split,
        "question_ids": [turn.question_id for turn in plan.turns],
        "text_ids": [turn.text_id for turn in plan.turns],
        "context_ids": plan.context_ids,
        "messages": messages,
        "positive_positions": positions,
    }


def _counts(selection: pl.DataFrame, plans: list[ChatPlan]) -> dict[str, Any]:
    splits = dict(selection["split"].drop_nulls().value_counts().rows())
    reasons = dict(selection["drop_reason"].drop_nulls().value_counts(sort=True).rows())
    return {
        "questions": selection.height,
        "kept": splits,
        "left_out": reasons,
        "chats": len(plans),
        "turns": sum(len(plan.turns) for plan in plans),
    }

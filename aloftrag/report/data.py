"""What the page shows of a run, read from its artifacts; what is counted over all rows is counted lazily."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from aloftrag import artifacts, storage
from aloftrag.artifacts import Run
from aloftrag.prompts import rag
from aloftrag.training.loop import METRICS

_BIN = 0.05  # of similarities
_EXAMPLES = 3  # for each reason
_SHOWN = {"wins": 4, "losses": 3, "others": 3}  # of the questions shown side by side
_POINTS = 120  # of the loss curve
Row = dict[str, Any]


def funnel(manifests: dict[str, Row], run: Run) -> list[tuple[str, int]]:
    """How many of each there are, from the documents to the questions trained on."""
    counts = {name: manifest["counts"] for name, manifest in manifests.items()}
    kept, threshold = counts["chats"]["kept"], run.job.annotation.text_threshold
    rated_enough = [(f"texts rated {threshold:g} or more", _rated(run.artifact("annotations"), threshold))] if threshold else []
    found_first = [("questions that find their own text first", counts["negatives"]["found_own_text_first"])]
    return [
        ("source files", counts["texts"]["files"]),
        ("texts read", counts["texts"]["read"]),
        ("different texts", counts["texts"]["texts"]),
        ("texts with a rating", counts["annotations"]["rated"]),
        *rated_enough,
        ("questions written", counts["annotations"]["questions"]),
        *(found_first if run.job.negatives.require_self_retrieval else []),
        ("questions kept for training", kept.get("train", 0)),
        ("conversations that ask them in training", counts["adapter"]["chats"]),
    ]


def _rated(annotations: Path, threshold: float) -> int:
    """How many texts have at least this rating."""
    enough = storage.scan(annotations).filter(pl.col("text_rating") >= threshold)
    return int(enough.select(pl.col("text_id").n_unique()).collect().item())


def left_out(run: Run) -> list[tuple[str, int, list[dict[str, str]]]]:
    """Why questions were left out of training: (reason, how many, examples)."""
    dropped = storage.scan(run.artifact("selection")).filter(pl.col("drop_reason").is_not_null())
    examples = dropped.group_by("drop_reason").agg(
        pl.len().alias("count"), pl.col("question_id").sort().head(_EXAMPLES), pl.col("text_id").sort_by("question_id").head(_EXAMPLES)
    )
    reasons = examples.sort("count", "drop_reason", descending=[True, False]).collect().to_dicts()
    wanted = [question_id for row in reasons for question_id in row["question_id"]]
    annotated = (
        storage.scan(run.artifact("annotations"))
        .filter(pl.col("question_id").is_in(wanted))
        .select("question_id", "text_id", "question", "answer", "error", "reply", "text_rating_reply")
        .collect()
    )
    texts = storage.scan(run.artifact("texts")).filter(pl.col("text_id").is_in(annotated["text_id"].to_list())).collect()
    contents = dict(texts.select("text_id", "text").iter_rows())
    by_id = {row["question_id"]: row for row in annotated.to_dicts()}
    return [(row["drop_reason"], row["count"], [_example(by_id[found], contents) for found in row["question_id"]]) for row in reasons]


def _example(row: Row, contents: dict[str, str]) -> dict[str, str]:
    """The question and answer or, without one, the text, why nothing came of it, and what the model replied."""
    if row["question"]:
        return {"text": f"{row['question']} {row['answer']}", "why": "", "reply": ""}
    reply = row["reply"] or row["text_rating_reply"] or ""
    return {"text": _cut(contents[row["text_id"]]), "why": row["error"] or "", "reply": _cut(reply)}


def ratings(annotations: Path) -> list[tuple[int, float]]:
    """The share of each rating from 0 to 10 among rated texts; empty when there is none."""
    rated = (
        storage.scan(annotations)
        .unique("text_id")
        .select(pl.col("text_rating").drop_nulls().round().cast(pl.Int64).alias("rating"))
        .group_by("rating")
        .len()
        .collect()
    )
    counts, total = dict(rated.iter_rows()), rated["len"].sum()
    return [(rating, counts.get(rating, 0) / total) for rating in range(11)] if total else []


def similarities(negatives: Path) -> list[tuple[float, float, float]]:
    """How similar positives and negatives are to their questions: (from, share of positives, share of negatives), in steps of 0.05."""
    rows = storage.scan(negatives)
    positive = rows.select(pl.col("positive_similarity").alias("similarity"))
    negative = rows.select(pl.col("similarities").explode(empty_as_null=False).alias("similarity"))
    shares = [dict(_shares(part).iter_rows()) for part in (positive, negative)]
    bins = sorted({place for part in shares for place in part})
    return [(place * _BIN, shares[0].get(place, 0.0), shares[1].get(place, 0.0)) for place in range(bins[0], bins[-1] + 1)]


def _shares(similarity: pl.LazyFrame) -> pl.DataFrame:
    place = (pl.col("similarity") / _BIN).floor().cast(pl.Int64).alias("bin")
    return similarity.group_by(place).len().with_columns(pl.col("len") / pl.col("len").sum()).collect()


def losses(adapter: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, loss) of training, the mean of as many steps as make at most 120 points, and of validation where there is one."""
    lines = artifacts.read_jsonl(adapter / METRICS)
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    several = -(-len(trained) // _POINTS)
    groups = [trained[start : start + several] for start in range(0, len(trained), several)]
    found = {"training": [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]}
    validated = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    return found | ({"validation": validated} if validated else {})


def side_by_side(run: Run) -> list[Row]:
    """Ten questions with both replies: some that the adapter won, some that it lost, some that changed nothing; by question id.

    Each has its question, accepted answers, contexts (text, whether it is right, who cites it) and both replies.
    """
    scores = storage.scan(run.artifact("scores")).collect().pivot("variant", index="question_id", values="citation_exact")
    exact = {row["question_id"]: row for row in scores.sort("question_id").to_dicts()}
    gain = {question_id: row["adapter"] - row["base"] for question_id, row in exact.items()}
    kinds = {
        "wins": [question_id for question_id, change in gain.items() if change > 0],
        "losses": [question_id for question_id, change in gain.items() if change < 0],
        "others": [question_id for question_id, change in gain.items() if change == 0],
    }
    chosen = {question_id: kind for kind, ids in kinds.items() for question_id in ids[: _SHOWN[kind]]}
    spare = [question_id for ids in kinds.values() for question_id in ids if question_id not in chosen]
    kind_of = {question_id: kind for kind, ids in kinds.items() for question_id in ids}
    chosen |= {question_id: kind_of[question_id] for question_id in spare[: sum(_SHOWN.values()) - len(chosen)]}
    asked = _rows(run.artifact("questions"), chosen)
    replies = {variant: _rows(run.artifact("answers") / variant, chosen) for variant in ("base", "adapter")}
    rows = []
    for question_id, kind in chosen.items():
        both = {variant: replies[variant][question_id] for variant in replies}
        right = {both["base"]["positive_position"], *both["base"]["also_positive_positions"]}
        contexts = [
            {
                "position": position,
                "text": text,
                "is_right": position in right,
                "cited_by": [variant for variant, reply in both.items() if position in (reply["cited_positions"] or [])],
            }
            for position, text in enumerate(rag.shown_texts(asked[question_id]["messages"]), 1)
        ]
        asked_of_both = {"question": both["base"]["question"], "gold": both["base"]["gold_answers"], "contexts": contexts}
        is_right = {f"{variant}_right": exact[question_id][variant] == 1 for variant in both}
        rows.append({"kind": kind, **asked_of_both, **is_right, **both})
    return rows


def _rows(artifact: Path, ids: Iterable[str]) -> dict[str, Row]:
    """Some rows of a table of questions, by id."""
    rows = storage.scan(artifact).filter(pl.col("question_id").is_in(list(ids))).collect()
    return {row["question_id"]: row for row in rows.to_dicts()}


def _cut(text: str, characters: int = 160) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= characters else f"{text[:characters]} …"

"""Step 6b (paper 4.3): what the answers are worth, and whether the adapter should be used.

answers (and, for a judge, questions) -> scores.json, and scores (a row per question and variant)
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from aloftrag import artifacts, redact, storage
from aloftrag.artifacts import Run
from aloftrag.engine import StartEngine
from aloftrag.evaluation import judge, metrics
from aloftrag.evaluation.statistics import paired_difference
from aloftrag.evaluation.verdict import verdict
from aloftrag.prompts import rag

MAKES = "scores"
BESIDE: tuple[str, ...] = ()
NEEDS: tuple[str, ...] = ("answers",)
VERSION = 3

SCORES = "scores.json"
_BASELINES = {"most_similar": "most_similar_position", "most_words": "most_words_position"}  # what each of them cites
_MEANS = ("citation_accuracy", "citation_exact", "citation_precision", "citation_recall", "citation_f1", "format_ok")
_ANSWER_MEANS = ("answer_f1", "answer_contains", "right_answer_wrong_citation")
_DIFFERENCES = ("citation_accuracy", "citation_exact", "answer_f1")


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the scores, beside the answers."""
    named = run.job.evaluation.judge
    return {"language": run.job.language, "seed": run.job.seed, "evaluation.judge": judge.identity(named) if named else None}


def make(run: Run, folder: Path, work: Path, start_judge: StartEngine | None = None) -> dict[str, Any]:
    """Write the ``scores`` artifact and scores.json; returns the verdict."""
    answers_manifest = artifacts.manifest(run.artifact("answers"))
    assert answers_manifest is not None
    answers = {variant: storage.scan(run.artifact("answers") / variant).collect().sort("question_id") for variant in ("base", "adapter")}
    verdicts = None
    if run.job.evaluation.judge:
        verdicts = judge.judged(_to_judge(run, answers), run, work, start_judge or judge.starter_of(run))
    rows = {variant: score_rows(table, run.job.language, verdicts) for variant, table in answers.items()}
    judged = pl.concat(rows.values()).filter(pl.col("answer_accuracy").is_null())["question_id"].to_list()
    of_both = pl.when(~pl.col("question_id").is_in(judged)).then("answer_accuracy").alias("answer_accuracy")
    rows = {variant: table.with_columns(of_both) for variant, table in rows.items()}  # compared over the same questions
    artifacts.fresh_folder(folder)
    artifacts.write_table(pl.concat(rows.values()).to_arrow(), folder / "scores.parquet")
    scores = summarise(run, rows, answers["base"], answers_manifest["counts"])
    artifacts.write_json(run.folder / SCORES, scores)
    unusable = {"unusable_verdicts": sum(verdict is None for verdict in verdicts.values())} if verdicts is not None else {}
    return {"verdict": scores["verdict"], "why": scores["why"], **unusable}


def _to_judge(run: Run, answers: dict[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """What a judge is asked: every answer with the text that holds the right one, where that was shown."""
    asked = storage.scan(run.artifact("questions")).select("question_id", "messages", "positive_position").collect()
    texts = {
        question_id: rag.shown_texts(messages)[position - 1] if position is not None else None
        for question_id, messages, position in asked.iter_rows()
    }
    return [
        {
            "answer_id": _answer_id(row),
            "text": texts[row["question_id"]],
            **{name: row[name] for name in ("question", "gold_answers", "answer")},
        }
        for table in answers.values()
        for row in table.iter_rows(named=True)
        if row["answer"] is not None
    ]


def _answer_id(row: dict[str, Any]) -> str:
    return f"{row['question_id']}/{row['variant']}"


def score_rows(answers: pl.DataFrame, language: str, verdicts: dict[str, bool | None] | None = None) -> pl.DataFrame:
    """The metrics of each answer; an unusable reply is wrong in all of them.

    ``verdicts``: of a judge, by answer; an answer that it does not say anything of has no ``answer_accuracy``, and without a judge
    none has. Beside the metrics stands what the baselines would score (``most_similar``, ``most_words``).
    """
    rows = []
    for row in answers.iter_rows(named=True):
        cited, right = row["cited_positions"], set(right_positions(row))
        accuracy, precision = metrics.citation_accuracy(cited, right), metrics.citation_precision(cited, right)
        contains = metrics.answer_contains(row["answer"], row["gold_answers"], language)
        judged = None if verdicts is None else verdicts.get(_answer_id(row), False)  # what is no answer was not judged
        is_right = contains == 1 if verdicts is None else judged is True
        rows.append(
            {
                "question_id": row["question_id"],
                "variant": row["variant"],
                "is_hard": row["is_hard"],
                "citation_accuracy": accuracy,
                "citation_exact": metrics.citation_exact(cited, right),
                "citation_precision": precision,
                "citation_recall": accuracy,  # one right text is enough
                "citation_f1": metrics.f1(precision, accuracy),
                "format_ok": float(cited is not None),
                "answer_f1": metrics.answer_f1(row["answer"], row["gold_answers"], language),
                "answer_contains": contains,
                "answer_accuracy": None if judged is None else float(judged),
                "right_answer_wrong_citation": float(is_right and accuracy == 0),
                "abstained": cited == [],
                "may_abstain": not right,  # no text that answers is shown
                **{name: float(row[column] in right) for name, column in _BASELINES.items()},
            }
        )
    return pl.DataFrame(rows, schema_overrides={"answer_accuracy": pl.Float64})


def right_positions(row: dict[str, Any]) -> list[int]:
    """The positions of the texts that answer a question: the positive's, where it is shown, and of texts known to answer too."""
    positive = row["positive_position"]
    return sorted({*([] if positive is None else [positive]), *row["also_positive_positions"]})


def summarise(run: Run, rows: dict[str, pl.DataFrame], base: pl.DataFrame, counts: dict[str, Any]) -> dict[str, Any]:
    """scores.json as in the contract."""
    shown = base["context_ids"].list.len()
    right = [right_positions(row) for row in base.iter_rows(named=True)]
    baselines = {name: rows["adapter"][name] for name in _BASELINES}
    scores: dict[str, Any] = {
        "job": run.job.name,
        "language": run.job.language,
        "questions": base.height,
        "questions_from": counts["questions_from"],
        "contexts": max(map(len, base["context_ids"])),
        "baselines": {
            "chance": _rounded((pl.Series(map(len, right)) / shown).mean()),
            **{name: _rounded(is_right.mean()) for name, is_right in baselines.items()},
        },
        "against_baselines": {name: _compared(rows["adapter"]["citation_exact"], is_right) for name, is_right in baselines.items()},
        "retrieval": {"mode": run.job.evaluation.retrieval, "recall": _rounded((~base["is_hard"]).mean())},
        "constrained": counts["constrained"],
        **{variant: _variant_scores(rows[variant], may_be_absent=run.job.may_be_absent) for variant in ("base", "adapter")},
        "difference": {name: _difference(rows, name, run.job.seed) for name in _DIFFERENCES},
    }
    if run.job.evaluation.judge:
        scores["judge"] = redact.text(run.job.evaluation.judge)
        scores["difference"]["answer_accuracy"] = _difference(rows, "answer_accuracy", run.job.seed)
    if counts["constrained"]:
        free = [
            rag.read(reply or "", contexts, may_be_absent=run.job.may_be_absent)
            for reply, contexts in zip(base["completion_free"], base["context_ids"].list.len(), strict=True)
        ]
        scores["base"]["format_ok_free"] = _rounded(np.mean([reply is not None for reply in free]))
    if "not_applied" in counts:
        scores["not_applied"] = counts["not_applied"]
    scores["verdict"], scores["why"] = verdict(scores)
    return scores


def _difference(rows: dict[str, pl.DataFrame], name: str, seed: int) -> dict[str, Any]:
    base, adapter = (rows[variant][name].drop_nulls().to_numpy() for variant in ("base", "adapter"))
    return paired_difference(base, adapter, seed).as_json()


def _compared(adapter: pl.Series, baseline: pl.Series) -> dict[str, int]:
    """How many questions both get right, one of them, none; each a score of 0 or 1 per question."""
    pairs = list(zip(adapter == 1, baseline == 1, strict=True))
    outcomes = {"both": (True, True), "adapter_only": (True, False), "baseline_only": (False, True), "neither": (False, False)}
    return {name: pairs.count(outcome) for name, outcome in outcomes.items()}


def abstention(rows: pl.DataFrame) -> dict[str, Any]:
    """How well a variant says that no text answers: of the questions where it says so, and of those where it should; null of none.

    ``over_refusal``: of the questions that a shown text answers, the share where it says that none does.
    """
    missing, shown, abstained = rows.filter("may_abstain"), rows.filter(~pl.col("may_abstain")), rows.filter("abstained")
    return {
        "questions": missing.height,
        "precision": _rounded(abstained["may_abstain"].mean()) if abstained.height else None,
        "recall": _rounded(missing["abstained"].mean()) if missing.height else None,
        "over_refusal": _rounded(shown["abstained"].mean()) if shown.height else None,
    }


def _variant_scores(rows: pl.DataFrame, *, may_be_absent: bool) -> dict[str, Any]:
    def part(is_hard: bool) -> dict[str, Any]:
        chosen = rows.filter(pl.col("is_hard") == is_hard)
        means = {name: _rounded(chosen[name].mean()) if chosen.height else None for name in _DIFFERENCES}
        return {"questions": chosen.height, **means}

    return {
        **{name: _rounded(rows[name].mean()) for name in _MEANS},
        "answer_accuracy": _rounded(rows["answer_accuracy"].mean()) if rows["answer_accuracy"].count() else None,
        **{name: _rounded(rows[name].mean()) for name in _ANSWER_MEANS},
        "easy": part(False),
        "hard": part(True),
        **({"abstention": abstention(rows)} if may_be_absent else {}),
    }


def _rounded(value: Any) -> float:
    return round(float(value), 6)

"""Runs side by side: base and adapter, how certain the difference is, and what the paper found on the same data set."""

import csv
import math
import re
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from aloftrag.evaluation.statistics import holm, paired_t_test

Row = dict[str, str]


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table over the scores.json of several runs.

    The p-values are corrected for the number of runs; the last lines compare the means over all of them.
    """
    corrected = holm([scores["difference"]["citation_exact"]["p"] for scores in runs])
    rows = [_row(scores, p) for scores, p in zip(runs, corrected, strict=True)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = ["  ".join(name.ljust(widths[name]) for name in rows[0])]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in row).rstrip() for row in rows]
    return lines + (_overall(runs) if len(runs) > 1 else []) + ["", *_notes(runs)]


def _row(scores: dict[str, Any], p: float) -> Row:
    base, adapter, difference = scores["base"], scores["adapter"], scores["difference"]["citation_exact"]
    figure = paper_figure(scores["job"], scores["language"])
    low, high = difference["ci95"]
    return {
        "run": f"{scores['job']}/{scores['language']}",
        "questions": f"{scores['questions']} {scores['questions_from']}",
        "exact citations": _change(base["citation_exact"], adapter["citation_exact"]),
        "difference (95% CI)": f"{100 * difference['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        "p (Holm)": f"{p:.4f}",
        "first hit": f"{100 * scores['baselines']['most_similar']:.1f}",
        "citation accuracy": _change(base["citation_accuracy"], adapter["citation_accuracy"]),
        "paper's": f"{figure['citation_base']} -> {figure['citation_adapter']}" if figure else "-",
        "answer F1": _change(base["answer_f1"], adapter["answer_f1"]),
        "verdict": scores["verdict"],
    }


def _change(base: float, adapter: float) -> str:
    return f"{100 * base:.1f} -> {100 * adapter:.1f}"


def _overall(runs: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["", f"mean of {len(runs)} runs (p of the paired t-test over runs)"]
    for name in ("citation_exact", "citation_accuracy", "answer_f1"):
        base, adapter = ([scores[variant][name] for scores in runs] for variant in ("base", "adapter"))
        p = paired_t_test(base, adapter)
        lines.append(
            f"  {name:<18}{_change(math.fsum(base) / len(base), math.fsum(adapter) / len(adapter))}"
            + ("" if math.isnan(p) else f"   p = {p:.4f}")
        )
    return lines


def _notes(runs: Sequence[dict[str, Any]]) -> list[str]:
    notes = [
        "All but p in percent. first hit: citing the most similar text, whatever the question; an adapter below it adds nothing there."
    ]
    if any(paper_figure(scores["job"], scores["language"]) for scores in runs):
        notes.append(
            "paper's: citation accuracy of Qwen2-7B-Instruct on the set that the job is named after, ten contexts, base -> adapter "
            "(arXiv 2501.11929, table 5); other questions, models and contexts give other figures."
        )
    return notes


def paper_figure(job: str, language: str) -> Row | None:
    """The paper's figures for the data set that a job is named after (``xquad``, ``xquad-en-cpu``) in a language, if it has any."""
    text = (files("aloftrag.report") / "paper_results.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return next((row for row in rows if row["language"] == language and _is_named_after(job, row["dataset"])), None)


def _is_named_after(job: str, dataset: str) -> bool:
    name = "[-_.]?".join(map(re.escape, _plain(dataset).split("-")))
    return re.match(rf"{name}(?![a-z0-9])", _plain(job)) is not None


def _plain(name: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(letter))

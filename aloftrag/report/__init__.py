"""The page of a run (report.html): verdict, base against adapter, funnel, settings; one file, no network."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from aloftrag import artifacts
from aloftrag.artifacts import Run
from aloftrag.languages import english_name

PAGE = "report.html"
METRIC_NAMES = {
    "citation_exact": "cites the right text and nothing else",
    "citation_accuracy": "the right text is among the cited (the paper's metric)",
    "citation_precision": "share of the cited texts that is right",
    "format_ok": "reply keeps the form",
    "answer_f1": "words shared with the accepted answer (F1)",
    "answer_contains": "answer holds the accepted answer",
    "right_answer_wrong_citation": "right answer, wrong citation",
}
_BIN = 0.05  # of similarities
_MADE = ("texts", "annotations", "negatives", "chats", "adapter", "answers")


def write(run: Run) -> None:
    """Write the page from scores.json and the manifests; the run is finished."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (files("aloftrag.report") / "page.html").read_text(encoding="utf-8")
    )
    manifests = {name: artifacts.manifest(run.artifact(name)) or {} for name in _MADE}
    page = template.render(
        scores=artifacts.read_json(run.folder / "scores.json"),
        metric_names=METRIC_NAMES,
        language=english_name(run.job.language),
        funnel=funnel(manifests),
        left_out=manifests["chats"]["counts"]["left_out"],
        negatives=manifests["negatives"]["counts"],
        similarities=similarities(run.artifact("negatives")),
        engine_busy=manifests["annotations"]["counts"].get("engine_busy"),
        durations={name: manifest["seconds"] for name, manifest in manifests.items()},
        versions=manifests["texts"]["versions"],
        settings=yaml.safe_dump(run.job.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    (run.folder / PAGE).write_text(page, encoding="utf-8")


def similarities(negatives: Path) -> list[tuple[str, float, float]]:
    """How similar positives and negatives are to their questions: (from ... to, share of positives, share of negatives)."""
    rows = pl.scan_parquet(negatives / "*.parquet")
    positive = rows.select(pl.col("positive_similarity").alias("similarity"))
    negative = rows.select(pl.col("similarities").explode(empty_as_null=False).alias("similarity"))
    shares = [dict(_shares(part).iter_rows()) for part in (positive, negative)]
    bins = sorted({place for part in shares for place in part})
    return [
        (f"{place * _BIN:.2f} to {(place + 1) * _BIN:.2f}", shares[0].get(place, 0.0), shares[1].get(place, 0.0))
        for place in range(bins[0], bins[-1] + 1)
    ]


def _shares(similarity: pl.LazyFrame) -> pl.DataFrame:
    place = (pl.col("similarity") / _BIN).floor().cast(pl.Int64).alias("bin")
    return similarity.group_by(place).len().with_columns(pl.col("len") / pl.col("len").sum()).collect()


def funnel(manifests: dict[str, dict[str, Any]]) -> list[tuple[str, int]]:
    """How many of each there are, from the documents to the questions trained on."""
    counts = {name: manifest["counts"] for name, manifest in manifests.items()}
    kept = counts["chats"]["kept"]
    return [
        ("source files", counts["texts"]["files"]),
        ("texts read", counts["texts"]["read"]),
        ("different texts", counts["texts"]["texts"]),
        ("texts with a rating", counts["annotations"]["rated"]),
        ("questions written", counts["annotations"]["questions"]),
        ("questions that find their own text first", counts["negatives"]["found_own_text_first"]),
        ("questions kept for training", kept.get("train", 0)),
        ("chats trained on", counts["adapter"]["chats"]),
    ]

"""The page of a run (report.html): verdict, base against adapter, funnel, settings; one file, no network."""

from importlib.resources import files
from typing import Any

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
        engine_busy=manifests["annotations"]["counts"].get("engine_busy"),
        durations={name: manifest["seconds"] for name, manifest in manifests.items()},
        versions=manifests["texts"]["versions"],
        settings=yaml.safe_dump(run.job.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    (run.folder / PAGE).write_text(page, encoding="utf-8")


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

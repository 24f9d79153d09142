"""What the tests that kill processes share."""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.small_job import sections, write_texts


@pytest.fixture
def small_job(job_file: Any, tmp_path: Path, tiny_llm: Path) -> Path:
    """A job file for ``small_job.TEXTS`` short texts and a random model."""
    write_texts(tmp_path / "texts.jsonl")
    path: Path = job_file(**sections(tiny_llm))
    return path

"""The job files of the repository are read, and each ablation changes what it is named after and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from aloftrag import job

JOBS = Path(__file__).parents[2] / "jobs"
CHANGES = {
    "baseline": set(),
    "contexts-2": {"negatives.contexts"},
    "contexts-5": {"negatives.contexts"},
    "contexts-2-to-10": {"negatives.contexts"},
    "without-step-1": {"annotation.text_threshold"},
    "with-step-3": {"annotation.qa_threshold"},
    "guard": {"negatives.relative_margin", "negatives.near_duplicate_similarity"},
    "unanswerable": {"negatives.relative_margin", "training.unanswerable", "evaluation.retrieval"},
    "unanswerable-baseline": {"negatives.relative_margin", "evaluation.retrieval"},
    "text-first": {"annotation.layout"},
    "instructions-first": {"annotation.layout"},
}


def settings(path: Path) -> dict[str, Any]:
    """All settings of a job file but its name, by dotted key."""
    data = job.load(path).model_dump(exclude={"name"})
    sections = {f"{name}.{key}": value for name, section in data.items() if isinstance(section, dict) for key, value in section.items()}
    return sections | {name: value for name, value in data.items() if not isinstance(value, dict)}


def test_each_ablation_is_known() -> None:
    assert {path.stem for path in (JOBS / "ablations").glob("*.yaml")} == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_an_ablation_changes_what_it_is_named_after(name: str) -> None:
    baseline, found = settings(JOBS / "ablations" / "baseline.yaml"), settings(JOBS / "ablations" / f"{name}.yaml")
    assert {key for key, value in found.items() if baseline[key] != value} == CHANGES[name]
    assert job.load(JOBS / "ablations" / f"{name}.yaml").name == f"xquad-{name}"


def test_the_ablations_baseline_is_the_papers_job() -> None:
    paper, baseline = settings(JOBS / "paper.yaml"), settings(JOBS / "ablations" / "baseline.yaml")
    assert {key for key, value in paper.items() if baseline[key] != value} == {
        "annotation.stop_early",
        "annotation.rate_qa",
        "annotation.qa_threshold",
    }


def test_the_other_job_files_are_read() -> None:
    for path in JOBS.glob("*.yaml"):
        assert job.load(path).languages

"""Three languages submitted to a Ray cluster of a head and two nodes, and nodes that die in the middle of their work."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from aloftrag import artifacts
from tests.cluster import nodes, scripted
from tests.end_to_end import small_job
from tests.end_to_end.driver import start

pytestmark = pytest.mark.cluster

LANGUAGES = {"de": 200, "en": 300, "fr": 120}  # texts of each
TABLES = {
    "texts": "text_id",
    "annotations": "question_id",
    "negatives": "question_id",
    "clusters": "text_id",
    "selection": "question_id",
    "chats": "chat_id",
    "questions": "question_id",
    "answers/base": "question_id",
    "answers/adapter": "question_id",
    "scores": "question_id",
}
ENGINE = "ray::MapWorker(MapBatches(_EngineActor))"


@pytest.fixture(scope="module")
def job_files(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> dict[bool, Path]:
    """A job file for the three languages: for the scripted engine (True), and for the real one with a random model."""
    of_scripted = {
        "annotation": {"text_threshold": 7, "max_failed": 1.0, "drop": {"wrong_language": False}},
        "negatives": {"contexts": 4},
        "training": {"max_tokens": 1024, "lora_r": 4, "examples_per_step": 4, "checkpoint_minutes": 0.02, "validation": 0.0},
        "evaluation": {"held_out": 0.15, "max_questions": 20},
        "resources": {"training_workers": 1},  # several on GPUs would want CUDA
    }
    return {
        is_scripted: scripted.write_job(tmp_path_factory.mktemp("job"), LANGUAGES, tiny_llm, **sections)
        for is_scripted, sections in ((True, of_scripted), (False, {**of_scripted, **small_job.sections(tiny_llm)}))
    }


@pytest.fixture(scope="module")
def submitted(job_files: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, str]]:
    """``submitted(kill_when=..., title=...)``: the run folders after all jobs have ended, and what was printed.

    The node that holds a process of that title is killed as soon as the condition on the run folders holds.
    """

    def run(kill_when: str | None = None, title: str = ENGINE, *, is_scripted: bool = True, gpus: int = 2) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("cluster")
        runs = folder / "runs"
        environ = {scripted.SECONDS: "0.05", "VLLM_CPU_KVCACHE_SPACE": "1"}  # several real engines share this machine's memory
        with nodes.cluster(folder / "ray", scripted=is_scripted, **environ) as found:
            for _ in range(2):
                found.add(cpus=4, gpus=gpus)
            found.wait_for_nodes(3)
            arguments = ["submit", str(job_files[is_scripted]), "--address", found.address, "--runs", str(runs), "--follow"]
            process = start(arguments, environ=found.environ)
            try:
                if kill_when:
                    found.kill(_holder(found, runs, kill_when, title, process))
                output, _ = process.communicate(timeout=900)
            finally:
                process.kill()
        assert process.returncode == 0, output[-5000:]
        return runs / "scripted", output

    return run


def _holder(found: nodes.Nodes, runs: Path, pattern: str, title: str, followed: subprocess.Popen[str]) -> int:
    """The node to kill, once files that match are there."""
    deadline = time.monotonic() + 300
    while followed.poll() is None and time.monotonic() < deadline:
        if any(runs.glob(f"scripted/*/{pattern}")) and (number := found.holder_of(title)) is not None:
            return number
        time.sleep(0.05)
    followed.kill()
    pytest.fail(f"the moment never came: {pattern} with {title}: {followed.communicate()[0][-5000:]}")


def rows_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pl.read_parquet(run / name / "*.parquet").sort(key).to_dicts() for name, key in TABLES.items()}


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in artifacts.read_jsonl(run / "adapter" / "metrics.jsonl") if "loss" in line]


def hold_same(job: Path, other: Path) -> None:
    """Two jobs' runs are the same, row for row; losses to rounding."""
    for language in LANGUAGES:
        for (name, rows), others in zip(rows_of(job / language).items(), rows_of(other / language).values(), strict=True):
            assert rows == others, f"{language}: {name}"
        assert np.allclose(losses_of(job / language), losses_of(other / language), rtol=1e-4), language
        scores = [json.loads((folder / language / "scores.json").read_text()) for folder in (job, other)]
        assert scores[0] == scores[1]
        assert (other / language / "report.html").is_file()
        assert not (other / language / ".work").exists()


@pytest.fixture(scope="module")
def undisturbed(submitted: Any) -> tuple[Path, str]:
    found: tuple[Path, str] = submitted()
    return found


def test_each_language_comes_to_its_report(undisturbed: tuple[Path, str]) -> None:
    job, printed = undisturbed
    lines = [line.split("\t") for line in printed.splitlines() if "\t" in line]
    assert [line[0] for line in lines[:3]] == ["en", "de", "fr"]  # the largest first
    for language, count in LANGUAGES.items():
        assert [language, "SUCCEEDED"] in lines
        assert any(language == line[0] and "SHIP" in line[-1] for line in lines)
        assert len(rows_of(job / language)["texts"]) == count
        assert (job / language / "report.html").is_file()
        assert not (job / language / ".work").exists()


@pytest.mark.parametrize(
    ("moment", "title"),
    [
        (".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet", ENGINE),
        (".work/mine_negatives-*/mined-checkpoints/begun.json", "ray::_ShardActor"),
        (".work/tune_adapter-*/checkpoints/step-*", "ray::RayTrainWorker"),
    ],
    ids=["annotation", "search", "training"],
)
def test_a_node_that_dies_changes_nothing(submitted: Any, undisturbed: tuple[Path, str], moment: str, title: str) -> None:
    job, _ = submitted(moment, title)
    hold_same(undisturbed[0], job)


def test_a_node_with_the_real_engine_that_dies_costs_no_row(submitted: Any) -> None:
    job, _ = submitted(".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet", is_scripted=False, gpus=0)
    for language, count in LANGUAGES.items():
        annotations = pl.read_parquet(job / language / "annotations/*.parquet")
        assert annotations["text_id"].n_unique() == count
        assert annotations["question_id"].n_unique() == annotations.height
        assert (job / language / "report.html").is_file()

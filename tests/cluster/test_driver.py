"""Drivers and heads of submitted jobs that die, two that want the same run, and more jobs than GPUs."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from aloftrag import claims
from tests.cluster import nodes, scripted
from tests.end_to_end.driver import start

pytestmark = pytest.mark.cluster

LANGUAGES = {"en": 300, "de": 60, "fr": 40}
COMMITTED = ".work/annotate-*/annotated_texts-checkpoints/*/*[!g].parquet"


@pytest.fixture
def job_path(tmp_path: Path, tiny_llm: Path) -> Path:
    return scripted.write_job(
        tmp_path,
        LANGUAGES,
        tiny_llm,
        annotation={"text_threshold": 8, "max_failed": 1.0, "drop": {"wrong_language": False}},
        negatives={"contexts": 3},
        training={"max_tokens": 512, "lora_r": 4, "examples_per_step": 16, "validation": 0.0},
        evaluation={"held_out": 0.3, "max_questions": 5},
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    """``cluster(name)``: a head, and a node with one GPU."""

    def make(name: str) -> Any:
        return nodes.cluster(tmp_path / name, scripted=True, **{scripted.SECONDS: "0.1", scripted.LOG: str(tmp_path / "asked.log")})

    return make


def submit(found: nodes.Nodes, job: Path, *arguments: str) -> Any:
    return start(
        ["submit", str(job), "--address", found.address, "--runs", str(job.parent / "runs"), "--follow", *arguments], environ=found.environ
    )


def wait(condition: Callable[[], Any], followed: subprocess.Popen[str] | None = None) -> None:
    """Until a condition holds; that fails when the jobs that are followed have ended before."""
    deadline = time.monotonic() + 300
    while not condition():
        if followed and followed.poll() is not None:
            pytest.fail(followed.communicate()[0][-5000:])
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.05)


def drivers(language: str) -> list[psutil.Process]:
    """The processes of submitted jobs for a language."""
    found = [(process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [process for process, said in found if said[1:4] == ["-m", "aloftrag.cli", "run"] and said[5:7] == ["--language", language]]


def committed(run: Path) -> set[str]:
    """The ids of the texts whose annotations are written for good."""
    return {text_id for file in run.glob(COMMITTED) for text_id in pl.read_parquet(file)["text_id"]}


def hold_asked_once(run: Path, ids: set[str], log: Path) -> None:
    """The engine was asked about these texts once."""
    texts = pl.read_parquet(run / "texts/*.parquet").filter(pl.col("text_id").is_in(list(ids)))["text"]
    asked = Counter(log.read_text().splitlines())
    assert texts.len() == len(ids) > 0
    assert {asked[text.removeprefix("The ").partition(" stands")[0]] for text in texts} == {1}


def hold_whole(run: Path, texts: int) -> None:
    annotations = pl.read_parquet(run / "annotations/*.parquet")
    assert annotations["text_id"].n_unique() == texts
    assert annotations["question_id"].n_unique() == annotations.height
    assert (run / "report.html").is_file()
    assert not (run / ".work").exists()


def test_a_job_whose_driver_is_killed_goes_on_when_it_is_submitted_again(job_path: Path, cluster: Any) -> None:
    run = job_path.parent / "runs" / "scripted" / "en"
    with cluster("ray") as found:
        found.add(cpus=4, gpus=1)
        found.wait_for_nodes(2)
        first = submit(found, job_path, "--language", "en")
        wait(lambda: any(run.glob(COMMITTED)), first)
        (driver,) = drivers("en")
        driver.kill()
        output, _ = first.communicate(timeout=120)
        written = committed(run)
        assert "en\tFAILED" in output
        output, _ = submit(found, job_path, "--language", "en").communicate(timeout=300)
        assert "en\tSUCCEEDED" in output, output[-3000:]
    hold_whole(run, LANGUAGES["en"])
    hold_asked_once(run, written, job_path.parent / "asked.log")


def test_jobs_whose_head_is_killed_go_on_with_another_one(job_path: Path, cluster: Any) -> None:
    run = job_path.parent / "runs" / "scripted" / "en"
    with cluster("ray") as found:
        found.add(cpus=4, gpus=1)
        found.wait_for_nodes(2)
        first = submit(found, job_path, "--language", "en")
        wait(lambda: any(run.glob(COMMITTED)), first)
        found.kill(0)
        output, _ = first.communicate(timeout=120)
        assert first.returncode == 1
        assert "the job server answers no more" in output.splitlines()[-1], output[-2000:]
    wait(lambda: not drivers("en"))
    written = committed(run)
    with cluster("ray-again") as found:
        found.add(cpus=4, gpus=1)
        found.wait_for_nodes(2)
        output, _ = submit(found, job_path, "--language", "en").communicate(timeout=300)
        assert "en\tSUCCEEDED" in output, output[-3000:]
    hold_whole(run, LANGUAGES["en"])
    hold_asked_once(run, written, job_path.parent / "asked.log")


def test_more_jobs_than_gpus_all_end_and_a_second_one_for_a_run_is_refused(job_path: Path, cluster: Any) -> None:
    runs = job_path.parent / "runs" / "scripted"
    with cluster("ray") as found:
        found.add(cpus=4, gpus=1)
        found.wait_for_nodes(2)
        first = submit(found, job_path)
        wait(lambda: claims.working(runs / "en" / ".claims"), first)
        second, _ = submit(found, job_path, "--language", "en").communicate(timeout=120)
        assert "en\tFAILED" in second
        assert "another process is working on this run: process" in second
        output, _ = first.communicate(timeout=600)
        assert first.returncode == 0, output[-3000:]
        third, _ = submit(found, job_path).communicate(timeout=300)
        assert third.count("done before") == 7 * len(LANGUAGES)
    for language, count in LANGUAGES.items():
        hold_whole(runs / language, count)

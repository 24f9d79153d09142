"""Two jobs that differ in how they are evaluated share all that comes before; and an adapter that does nothing is told.

With real engine, embedder and trainer on a two-layer random model.
"""

import shutil
from pathlib import Path

import pytest

from aloftrag import artifacts
from tests.end_to_end.driver import ended, finish, start

pytestmark = pytest.mark.faults

SHARED = ("texts", "annotations", "negatives", "chats", "adapter")


def scaled_b(adapter: Path, factor: float) -> None:
    """Make an adapter's B so much smaller; other runs may hold the same file by a link, which stays as it was."""
    from safetensors.numpy import load_file, save_file

    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    scaled = {name: abs(values) * values.dtype.type(factor) if ".lora_B" in name else values for name, values in tensors.items()}
    weights.unlink()
    save_file(scaled, weights)


def test_what_is_shared_is_made_once_and_an_adapter_that_does_nothing_is_held(small_job: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ["run", str(small_job), "--runs", str(runs)]
    finish(start(arguments))
    other = [*arguments, "--set", "name=other", "--set", "evaluation.max_questions=4", "--set", "evaluation.retrieval=as-is"]
    output = finish(start(other))
    assert output.count(" reused ") == 5
    for artifact in SHARED:
        made, taken = (artifacts.manifest(runs / job / "en" / artifact) for job in ("test", "other"))
        assert taken == {**(made or {}), "reused_from": "test/en"}
    assert artifacts.read_json(runs / "other" / "en" / "scores.json")["questions"] == 4
    assert "test/en" in (runs / "other" / "en" / "report.html").read_text()

    shutil.rmtree(runs / "test")  # what was taken from it stays whole
    run = runs / "other" / "en"
    for factor, cause in ((1e-12, "4 of 4 replies do not differ"), (0.0, "it was never trained")):
        scaled_b(run / "adapter", factor)
        process = start([*other, "--redo", "answer_questions"])
        output = ended(process, 600)
        assert process.returncode == 1, output[-3000:]
        scores = artifacts.read_json(run / "scores.json")
        assert scores["verdict"] == "hold"
        assert scores["why"].startswith(f"the adapter was not applied: {cause}")
        assert f"HOLD: {scores['why']}" in output
        assert output.strip().splitlines()[-1].startswith(f"aloftrag: {run}: the adapter was not applied")
        assert scores["why"] in (run / "report.html").read_text()

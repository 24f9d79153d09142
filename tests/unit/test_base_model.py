"""Adapters that belong to another model are told before anything is asked, and those that change nothing are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aloftrag import job
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.training.base_model import hold_adapter, is_trained

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
SMOLLM2_WIDTH = 576


@pytest.fixture
def adapter(tmp_path: Path) -> Any:
    """``adapter(width, b, name)``: the folder of an adapter of rank 2 for models of this width."""

    def make(width: int, b: float, name: str = "/somewhere/model") -> Path:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name, "r": 2}))
        matrices = {"A": np.ones((2, width), np.float32), "B": np.full((width, 2), b, np.float32)}
        save_file({f"{LAYER}.lora_{matrix}.weight": values for matrix, values in matrices.items()}, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return make


@pytest.fixture
def small(job_file: Any, smollm2: Path) -> Job:
    loaded = job.load(job_file())
    return loaded.model_copy(update={"models": loaded.models.model_copy(update={"llm": str(smollm2)})})


def test_an_adapter_of_the_model_is_taken_wherever_its_base_lay(adapter: Any, small: Job) -> None:
    hold_adapter(adapter(SMOLLM2_WIDTH, 0.1, "/another/machine/smollm2"), small)


def test_an_adapter_of_another_width_is_refused_by_name(adapter: Any, small: Job) -> None:
    with pytest.raises(RunError, match=r"an adapter of another model \(/somewhere/model\) than models.llm .* is 960 wide, not 576"):
        hold_adapter(adapter(960, 0.1), small)


def test_an_adapter_of_another_hub_model_is_refused(adapter: Any, small: Job) -> None:
    hub = small.model_copy(update={"models": small.models.model_copy(update={"llm": "Qwen/Qwen2.5-7B-Instruct"})})
    with pytest.raises(RunError, match=r"an adapter of Qwen/Qwen2-7B, but models.llm is Qwen/Qwen2.5-7B-Instruct"):
        hold_adapter(adapter(SMOLLM2_WIDTH, 0.1, "Qwen/Qwen2-7B"), hub)


def test_weights_in_bfloat16_and_matrices_of_other_kinds_are_no_trouble(adapter: Any, small: Job) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = adapter(SMOLLM2_WIDTH, 0.1)
    tensors = {name: values.to(torch.bfloat16) for name, values in load_file(folder / "adapter_model.safetensors").items()}
    save_file({**tensors, f"{LAYER}.lora_magnitude_vector.weight": torch.ones(3)}, folder / "adapter_model.safetensors")
    hold_adapter(folder, small)
    assert is_trained(folder)


@pytest.mark.parametrize(("b", "expected"), [(1e-12, True), (0.0, False)])
def test_an_adapter_is_trained_when_its_b_is_not_0(b: float, expected: bool, adapter: Any) -> None:
    assert is_trained(adapter(SMOLLM2_WIDTH, b)) == expected

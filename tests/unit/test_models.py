import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aloftrag.errors import UsageError
from aloftrag.models import local_folder, longest_prompt


class RunsCode:
    """What a pickle can do when it is loaded without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    return model


def test_pickled_weights_are_saved_as_safetensors_beside_the_other_files(folder: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    torch.save({"a": shared, "b": shared, "c": torch.ones(2).half()}, folder / "pytorch_model.bin")
    converted = local_folder(str(folder), "embedder")
    assert (converted / "config.json").read_text() == "{}"
    assert not (converted / "pytorch_model.bin").exists()
    weights = load_file(converted / "model.safetensors")
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in weights.items()} == {
        "a": (torch.float32, [[0, 1, 2], [3, 4, 5]]),
        "b": (torch.float32, [[0, 1, 2], [3, 4, 5]]),
        "c": (torch.float16, [1, 1]),
    }
    assert local_folder(str(folder), "embedder") == converted


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(folder: Path) -> None:
    torch.save({"a": RunsCode()}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="could run code"):
        local_folder(str(folder), "embedder")
    assert not Path("ran").exists()


def test_a_damaged_pickle_is_an_error_of_one_line(folder: Path) -> None:
    torch.save({"a": torch.ones(1000)}, folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:3000])
    with pytest.raises(UsageError, match="is damaged"):
        local_folder(str(folder), "embedder")


def test_a_changed_file_beside_pickled_weights_is_seen(folder: Path) -> None:
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no chat template"):
        local_folder(str(folder), "llm")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert (local_folder(str(folder), "llm") / "chat_template.jinja").is_file()


def test_pickled_weights_of_a_module_are_saved_as_safetensors_too(folder: Path) -> None:
    (folder / "model.safetensors").touch()
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.ones(2)}, folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense").chmod(0o555)
    converted = local_folder(str(folder), "embedder")
    assert (converted / "model.safetensors").is_file()
    assert load_file(converted / "2_Dense" / "model.safetensors")["linear.weight"].tolist() == [1, 1]


def test_a_conversation_is_no_longer_than_the_model_takes(tiny_llm: Path) -> None:
    assert longest_prompt(str(tiny_llm), 20_000) == 4096
    assert longest_prompt(str(tiny_llm), 2048) == 2048


def test_a_folder_with_safetensors_is_used_as_it_is(folder: Path) -> None:
    (folder / "model.safetensors").touch()
    torch.save({}, folder / "pytorch_model.bin")
    assert local_folder(str(folder), "embedder") == folder

"""Which model an adapter belongs to, and whether it changes that model at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aloftrag import artifacts, models
from aloftrag.errors import RunError
from aloftrag.job import Job

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of peft, before the base model's own names


def base_model(job: Job) -> str:
    """What peft and vLLM find the base model by: its hub id where it has one, else its folder here."""
    name = job.models.llm
    return name if _is_hub_id(name) else str(models.local_folder(name, "llm"))


def name_base_model(adapter: Path, job: Job) -> None:
    """Write the base model's name into the adapter's configuration."""
    config = artifacts.read_json(adapter / _CONFIG)
    config["base_model_name_or_path"] = base_model(job)
    artifacts.write_json(adapter / _CONFIG, config)


def hold_adapter(adapter: Path, job: Job) -> None:
    """Raises ``RunError`` for an adapter of another model than the job's."""
    named, wanted = artifacts.read_json(adapter / _CONFIG)["base_model_name_or_path"], base_model(job)
    if named != wanted and _is_hub_id(named) and _is_hub_id(wanted):
        raise RunError(f"{adapter}: an adapter of {named}, but models.llm is {wanted}; --redo tune_adapter makes one of it")
    shapes = _shapes(models.local_folder(job.models.llm, "llm"))
    for name, layer, matrix, tensor in _matrices(adapter):
        outputs, inputs = shapes.get(f"{layer}.weight", (None, None))
        expected, found = (outputs, tensor["shape"][0]) if matrix == "B" else (inputs, tensor["shape"][1])
        if expected not in (None, found):
            raise RunError(
                f"{adapter}: an adapter of another model ({named}) than models.llm ({wanted}): {name} is {found} wide, not {expected}; "
                "--redo tune_adapter makes one of it"
            )


def is_trained(adapter: Path) -> bool:
    """Whether an adapter changes its model: LoRA's B begins as 0 in every layer."""
    return any(any(tensor["data"]) for _, _, matrix, tensor in _matrices(adapter) if matrix == "B")


def _matrices(adapter: Path) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """The name, layer, matrix (A or B) and tensor of each of LoRA's matrices."""
    from safetensors import deserialize

    for name, tensor in deserialize((adapter / _WEIGHTS).read_bytes()):  # as bytes: numpy knows no bfloat16
        layer, _, matrix = name.removeprefix(_PREFIX).rpartition(".lora_")
        if matrix[:1] in ("A", "B"):
            yield name, layer, matrix[:1], tensor


def _shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The shape [outputs, inputs] of each matrix of a model, from the files' headers."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, int]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            found = {name: tensors.get_slice(name).get_shape() for name in tensors.offset_keys()}
        shapes |= {name: (shape[0], shape[1]) for name, shape in found.items() if len(shape) == 2}
    return shapes


def _is_hub_id(name: str) -> bool:
    return models.HUB_ID.fullmatch(name) is not None and not Path(name).exists()

"""Language model engines behind one port."""

import functools
from collections.abc import Callable
from pathlib import Path

from aloftrag.artifacts import Run
from aloftrag.engine.port import Completion, Engine, PromptTooLong
from aloftrag.engine.vllm import VllmEngine, VllmSettings

__all__ = ["Completion", "Engine", "PromptTooLong", "StartEngine", "starter"]

StartEngine = Callable[[], Engine]


def starter(run: Run, model: str | None = None, adapter: Path | None = None) -> StartEngine:
    """What starts an engine, in the process that calls it, on the run's language model or on ``model``."""
    settings = VllmSettings(
        model=model or run.job.models.llm,
        max_model_len=run.job.training.max_tokens,
        max_num_seqs=run.job.engine.max_num_seqs,
        tensor_parallel=run.job.resources.tensor_parallel,
        options=run.job.engine.options,
    )
    return functools.partial(VllmEngine, settings, adapter)

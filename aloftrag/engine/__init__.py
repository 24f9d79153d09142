"""Language model engines behind one port."""

import functools
from collections.abc import Callable
from pathlib import Path

from aloftrag import models
from aloftrag.artifacts import Run
from aloftrag.engine.port import Completion, Engine, EngineDead, PromptRefused
from aloftrag.engine.server import StartServerEngine
from aloftrag.engine.vllm import VllmEngine, VllmSettings

__all__ = ["Completion", "Engine", "EngineDead", "PromptRefused", "StartEngine", "annotator", "starter"]

StartEngine = Callable[[], Engine]

_SERVER_REQUESTS = 256  # at once, where engine.max_num_seqs does not say


def annotator(run: Run) -> StartEngine:
    """What starts the engine of steps 1 to 4: a client where ``models.llm`` is a server, else an engine of our own."""
    llm, engine = run.job.models.llm, run.job.engine
    if models.is_server(llm):
        return StartServerEngine(llm, run.job.training.max_tokens, engine.max_num_seqs or _SERVER_REQUESTS)
    return starter(run)


def starter(run: Run, model: str | None = None, adapter: Path | None = None) -> StartEngine:
    """What starts an engine, in the process that calls it, on the weights of the run's language model or on ``model``."""
    settings = VllmSettings(
        model=model or run.job.models.llm,
        max_model_len=run.job.training.max_tokens,
        max_num_seqs=run.job.engine.max_num_seqs,
        tensor_parallel=run.job.resources.tensor_parallel,
        options=run.job.engine.options,
    )
    return functools.partial(VllmEngine, settings, adapter)

"""vLLM: the same code on GPUs and on a CPU, where only the settings differ."""

import itertools
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aloftrag import storage
from aloftrag.cpus import usable_cpus
from aloftrag.engine.port import Completion, EngineDead, PromptRefused
from aloftrag.models import local_folder, longest_prompt
from aloftrag.prompts.chat import PlainPrompt, Prompt

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass(frozen=True)
class VllmSettings:
    """What an engine is started with."""

    model: str
    max_model_len: int  # tokens of prompt and reply; the model's own limit is kept too
    max_num_seqs: int | None = None
    tensor_parallel: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # to vLLM as they are


class VllmEngine:
    """A vLLM engine that answers chats, with an adapter when one is given."""

    def __init__(self, settings: VllmSettings, adapter: Path | None = None):
        adapter = storage.local(adapter) if adapter else None
        arguments = engine_arguments(settings, adapter)  # before torch is imported
        from transformers import AutoTokenizer
        from vllm import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        self.tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
        self._max_model_len = arguments["max_model_len"]
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self.max_num_seqs: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        self._adapter = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        self._request_ids = itertools.count()

    @property
    def is_dead(self) -> bool:
        """See ``aloftrag.engine.port.Engine``; vLLM raises for what it is asked afterwards, not always for what it was asked before."""
        return self._engine.errored

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``aloftrag.engine.port.Engine``."""
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        token_ids = prompt.token_ids(self.tokenizer)
        if len(token_ids) + prompt.max_tokens > self._max_model_len:
            raise PromptRefused.too_long(len(token_ids), prompt.max_tokens, self._max_model_len)
        request_id = str(next(self._request_ids))
        last = None
        try:
            async for output in self._engine.generate(
                TokensPrompt(prompt_token_ids=token_ids), sampling_params(prompt), request_id, lora_request=self._adapter
            ):
                last = output
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        assert last is not None, f"the engine ended request {request_id} without a reply"
        (completion,) = last.outputs
        return Completion(
            completion.text,
            completion.finish_reason == "stop",
            len(token_ids) + len(completion.token_ids),
            _first_tokens(completion.logprobs),
            completion.cumulative_logprob,
        )

    def close(self) -> None:
        """End the engine's own process."""
        self._engine.shutdown()
        del self._engine  # or it is ended once more when Python is half gone


def engine_arguments(settings: VllmSettings, adapter: Path | None = None) -> dict[str, Any]:
    """What vLLM's engine is made with; also sets this process's environment for the CPU build."""
    _prepare_cpu()
    return {
        "model": str(local_folder(settings.model, "llm")),
        "max_model_len": longest_prompt(settings.model, settings.max_model_len),
        "tensor_parallel_size": settings.tensor_parallel,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "enable_lora": adapter is not None,
        **({"max_lora_rank": _lora_rank(adapter)} if adapter else {}),
        **({} if on_gpu() else _cpu_arguments(settings)),
        **({"max_num_seqs": settings.max_num_seqs} if settings.max_num_seqs else {}),
        **settings.options,
    }


def sampling_params(prompt: Prompt) -> "SamplingParams":
    """How the reply to a prompt is written: greedily, in the prompt's form."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=prompt.max_tokens,
        stop=prompt.stop if isinstance(prompt, PlainPrompt) else None,
        logprobs=prompt.alternatives or None,
        structured_outputs=StructuredOutputsParams(regex=prompt.form) if prompt.form else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _first_tokens(logprobs: Any) -> dict[str, float] | None:
    """Probabilities by text of the candidates for the first token; with a form, of those that it allows."""
    if not logprobs:
        return None
    probabilities: dict[str, float] = {}
    for candidate in logprobs[0].values():
        text = candidate.decoded_token or ""
        probabilities[text] = probabilities.get(text, 0.0) + math.exp(candidate.logprob)
    return probabilities


def on_gpu() -> bool:
    """Whether this process sees a GPU."""
    import torch

    return torch.cuda.is_available()


def _cpu_arguments(settings: VllmSettings) -> dict[str, Any]:
    # On a CPU compilation takes two minutes, 16-bit products are far slower than 32-bit ones, a worker process of its own would
    # spin on a core that the other one needs, and more requests at once than the cache holds would push each other out.
    if settings.tensor_parallel == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # or vLLM takes its worker process after all: half as fast on two cores
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "mp",
        "max_num_seqs": 64,
        "block_size": 32,  # of 128 tokens, vLLM's default there, much of a shared beginning is not shared
    }


def _prepare_cpu() -> None:
    """Threads and memory of the CPU build; without effect on a GPU. Before torch is imported, which reads them once."""
    # Ray gives a worker one thread for each CPU that it asked for; the engine is the only worker that computes.
    os.environ["OMP_NUM_THREADS"] = str(usable_cpus())
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, memory // 4 >> 30)))  # GiB: a quarter of the machine
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def _lora_rank(adapter: Path) -> int:
    """What holds the rank of an adapter."""
    import json

    return holding_rank(json.loads((adapter / "adapter_config.json").read_text())["r"])


def holding_rank(lora_r: int) -> int:
    """The smallest ``--max-lora-rank`` that vLLM takes and that holds an adapter of rank ``lora_r``."""
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= lora_r)

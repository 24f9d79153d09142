"""The base model with its LoRA adapter, and what its training costs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aloftrag.job import Training

# Products and sums a second in bfloat16, dense, as the makers state them; for the share of it that training reaches.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def adapted_model(folder: Path, settings: "Training", adapter: Path | None) -> Any:
    """The base model with a LoRA adapter on all its linear layers: a new one, or ``adapter`` to go on with."""
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    in_bf16 = on_gpu and torch.cuda.is_bf16_supported()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if in_bf16 else torch.float32, attn_implementation=attention())
    base.config.use_cache = False
    if on_gpu:  # memory is short there, time on a CPU
        base.to("cuda")
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    if adapter:
        # Read to the CPU first: else every worker of a node reads it to the first GPU.
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True, torch_device="cpu")
    else:
        model = get_peft_model(base, _lora(settings))
    # With ddp the adapter's weights are float32, and their products took a third of each step in it (tests/gpu/RESULTS.md). As with
    # transformers' own Trainer, this holds for the whole model, also for what a mixture of experts does in float32 elsewhere.
    if in_bf16:
        model.forward = torch.autocast("cuda", torch.bfloat16)(model.forward)
    model.train()
    return model


def adapter_weights(folder: Path, settings: "Training") -> int:
    """How many weights the adapter of a model has, of which only the configuration is read."""
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        trained, _ = get_peft_model(base, _lora(settings)).get_nb_trainable_parameters()
    return int(trained)


def _lora(settings: "Training") -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
    )


def attention() -> str:
    """How attention is computed: by flash attention, which knows packed rows of any length, where its package and a GPU are there."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


@dataclass(frozen=True)
class Cost:
    """Of a LoRA step: forwards, and backwards to the activations; nothing that is computed twice to save memory."""

    weights: int  # of the linear layers that every token goes through
    attention_width: int  # of all heads, in all layers

    @classmethod
    def of(cls, model: Any) -> "Cost":
        """The cost of an adapted model."""
        config = model.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        weights = sum(
            math.prod(shape)
            for name, parameter in model.named_parameters()
            if len(shape := getattr(parameter, "ds_shape", parameter.shape)) == 2  # what ZeRO has parted is empty here
            and not parameter.requires_grad
            and "embed" not in name
            and "lm_head" not in name
        )
        return cls(weights, config.num_hidden_layers * config.num_attention_heads * head)

    def flops(self, lengths: list[int]) -> float:
        """Products and sums for rows of these lengths.

        A weight takes 2 a token forwards and 2 backwards, since it learns nothing itself; causal attention 2 x length^2 x width
        forwards, and twice that backwards.
        """
        return 4.0 * self.weights * sum(lengths) + 6.0 * self.attention_width * sum(length**2 for length in lengths)


def peak_flops() -> float | None:
    """What this machine's GPU can do a second; None without one, or with one that is not known here."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in _PEAKS.items() if all(part in name for part in known.split())), None)


def peak_memory() -> int:
    """The most memory that this process has held, in bytes: on its GPU, or in all."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def learning_rate(step: int, steps: int, highest: float) -> float:
    """The cosine schedule without warm-up (paper appendix C): from the highest at step 0 to nothing after the last."""
    return highest * 0.5 * (1 + math.cos(math.pi * step / steps))

"""The training loop (paper appendix C): LoRA on all linear layers, AdamW, cosine schedule without warm-up.

Runs without Ray: workers find each other through torch.distributed when there are several. A step has the same rows and the
same loss for any number of workers; only rounding differs.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloftrag.job import Training
from aloftrag.training.batches import collate, micro_batches, steps_of_epoch
from aloftrag.training.loss import loss_sums, weighted
from aloftrag.training.rows import TrainingRow

METRICS = "metrics.jsonl"
_STATE = "trainer_state.pt"


@dataclass
class Progress:
    """Where training stands: what a checkpoint keeps beside adapter and optimiser."""

    step: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Worker:
    """This worker among all."""

    rank: int = 0
    count: int = 1


Checkpoint = Callable[[Callable[[Path], None], Progress], None]


def train(
    model_folder: Path,
    rows: Sequence[TrainingRow],
    validation: Sequence[TrainingRow],
    settings: Training,
    seed: int,
    worker: Worker,
    *,
    checkpoint: Checkpoint,
    resume_from: Path | None,
) -> None:
    """Tune a LoRA adapter on ``rows``.

    ``checkpoint(save, progress)`` is called on every worker at the same steps, every ``checkpoint_minutes`` and at the end;
    ``save(folder)`` writes what ``resume_from`` takes.
    """
    import torch

    torch.manual_seed(seed)
    model = adapted_model(model_folder, settings, resume_from)
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate)
    steps = _all_steps([len(row) for row in rows], settings, seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / len(steps))))
    progress = _restore(resume_from, optimiser, schedule, worker) if resume_from else Progress()

    def save(folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        state = {
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
            "step": progress.step,
            "metrics": progress.metrics,
        }
        torch.save(state, folder / _STATE)

    checkpointed = time.monotonic()
    for number in range(progress.step, len(steps)):
        started = time.monotonic()
        own = [rows[row] for row in steps[number][worker.rank :: worker.count]]
        metrics = _step(model, own, [rows[row] for row in steps[number]], settings, worker, device)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rate = schedule.get_last_lr()[0]
        schedule.step()
        progress.step = number + 1
        seconds = time.monotonic() - started
        progress.metrics.append({"step": number + 1, "steps": len(steps), "learning_rate": rate, **metrics, "seconds": round(seconds, 3)})
        is_last = progress.step == len(steps)
        if is_last and validation:
            progress.metrics.append({"step": number + 1, **_validate(model, validation, settings, device)})
        if is_last or _agreed(time.monotonic() - checkpointed > 60 * settings.checkpoint_minutes, worker, device):
            checkpoint(save, progress)
            checkpointed = time.monotonic()


def adapted_model(folder: Path, settings: Training, adapter: Path | None) -> Any:
    """The base model with a LoRA adapter on all its linear layers: a new one, or ``adapter`` to go on with."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu else torch.float32, attn_implementation="sdpa")
    base.config.use_cache = False
    if on_gpu:  # memory is short there, time on a CPU
        base.to("cuda")
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    if adapter:
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    else:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules="all-linear",
        )
        model = get_peft_model(base, config)
    model.train()
    return model


def write_metrics(path: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """One JSON object per line; a reader sees the old file or the new one."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    unfinished.replace(path)


def _all_steps(lengths: Sequence[int], settings: Training, seed: int) -> list[list[int]]:
    return [step for epoch in range(settings.epochs) for step in steps_of_epoch(lengths, settings.examples_per_step, seed, epoch)]


def _step(
    model: Any, own: Sequence[TrainingRow], all_rows: Sequence[TrainingRow], settings: Training, worker: Worker, device: Any
) -> dict[str, Any]:
    """Gradients of one optimiser step, summed over workers; the loss is that of all the step's rows."""
    import torch

    from aloftrag.training.rows import ANSWER, CITATION

    citation_tokens = sum(row.targets.count(CITATION) for row in all_rows)
    answer_tokens = sum(row.targets.count(ANSWER) for row in all_rows)
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in _on_device(own, settings.max_tokens, device):
        part = loss_sums(model, batch)
        weighted(part.citation, part.answer, citation_tokens, answer_tokens, settings.citation_weight).backward()
        sums += torch.tensor([part.citation.item(), part.answer.item(), part.citations_right], dtype=torch.float64)
    if worker.count > 1:
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:  # this worker had no row in the step
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    citation, answer, right = sums.tolist()
    return _metrics(citation, answer, right, citation_tokens, answer_tokens, settings) | {"tokens": sum(map(len, all_rows))}


def _validate(model: Any, rows: Sequence[TrainingRow], settings: Training, device: Any) -> dict[str, Any]:
    """The loss on the validation rows; every worker computes the whole of it, and so the same."""
    import torch

    model.eval()
    totals = [0.0] * 5
    with torch.no_grad():
        for batch in _on_device(rows, settings.max_tokens, device):
            part = loss_sums(model, batch)
            values = (part.citation.item(), part.answer.item(), part.citations_right, part.citation_tokens, part.answer_tokens)
            totals = [total + value for total, value in zip(totals, values, strict=True)]
    model.train()
    citation, answer, right, citation_tokens, answer_tokens = totals
    metrics = _metrics(citation, answer, right, int(citation_tokens), int(answer_tokens), settings)
    return {f"validation_{name}": value for name, value in metrics.items()}


def _metrics(citation: float, answer: float, right: float, citation_tokens: int, answer_tokens: int, settings: Training) -> dict[str, Any]:
    import torch

    loss = weighted(torch.tensor(citation), torch.tensor(answer), citation_tokens, answer_tokens, settings.citation_weight)
    return {
        "loss": float(loss),
        "citation_loss": citation / citation_tokens,
        "answer_loss": answer / answer_tokens,
        "citation_accuracy": right / citation_tokens,
        "target_tokens": citation_tokens + answer_tokens,
    }


def _on_device(rows: Sequence[TrainingRow], max_tokens: int, device: Any) -> Iterator[Any]:
    from dataclasses import replace

    for batch in micro_batches(rows, max_tokens):
        padded = collate(batch, pad_id=0)
        yield replace(
            padded,
            token_ids=padded.token_ids.to(device),
            targets=padded.targets.to(device),
            attention_mask=padded.attention_mask.to(device),
        )


def _restore(folder: Path, optimiser: Any, schedule: Any, worker: Worker) -> Progress:
    import torch

    state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    if worker.rank == 0:  # whose state it is
        torch.set_rng_state(state["random"])
    return Progress(state["step"], state["metrics"])


def _agreed(wanted: bool, worker: Worker, device: Any) -> bool:
    """Rank 0's clock decides for all, so that every worker checkpoints at the same step."""
    import torch

    if worker.count == 1:
        return wanted
    decision = torch.tensor([int(wanted)], device=device)
    torch.distributed.broadcast(decision, src=0)
    return bool(decision.item())

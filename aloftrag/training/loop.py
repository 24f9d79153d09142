"""The training loop (paper appendix C): LoRA on all linear layers, AdamW, cosine schedule without warm-up.

Runs without Ray: workers find each other through torch.distributed when there are several. A step has the same rows and the same loss
for any number of workers, batched in either way, but for rounding and for what dropout drops. What it needs to go on after a kill lies in
its folder:

    checkpoints/step-NNNNNNNNN/   the adapter, the optimiser, and which step comes next
    best/step-NNNNNNNNN/          the adapter with the lowest validation loss so far (keep: best)
    metrics.jsonl                 a line for each step, and one for each validation
"""

import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from aloftrag import artifacts, storage
from aloftrag.job import Training
from aloftrag.training import checkpoints, model, strategies
from aloftrag.training.batches import Batch, Batching, batches, collate, share, steps_of_epoch
from aloftrag.training.loss import LossSums, loss_sums, weighted
from aloftrag.training.rows import NONE, TrainingRow
from aloftrag.training.strategies import Strategy
from aloftrag.training.worker import Worker

METRICS, CHECKPOINTS, BEST = "metrics.jsonl", "checkpoints", "best"

_STATE = "state.json"
_VALIDATIONS_PER_EPOCH = 4


class Rows(Protocol):
    """Tokenised chats by number, such as a ``RowStore``."""

    lengths: np.ndarray  # [rows], in tokens
    target_tokens: np.ndarray  # [rows, 2]: of citations, of answers

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> TrainingRow: ...


@dataclass(frozen=True)
class Tuning:
    """What all workers of a run train on, and how."""

    model_folder: Path
    rows: Rows
    validation: Rows
    settings: Training
    seed: int
    folder: Path


def train(tuning: Tuning, worker: Worker) -> None:
    """Tune a LoRA adapter, from the last checkpoint in the run's folder on; called by every worker.

    In the end the newest checkpoint is that of the last step, and ``metrics.jsonl`` has each step once.
    """
    import torch

    settings = tuning.settings
    newest = worker.of_first(checkpoints.newest(tuning.folder / CHECKPOINTS))
    step, lowest = _restored(newest)
    torch.manual_seed(tuning.seed)  # the adapter's first weights
    strategy = strategies.start(tuning.model_folder, settings, worker, storage.local(newest) if newest else None)
    steps = settings.epochs * math.ceil(len(tuning.rows) / settings.examples_per_step)
    validated = _validated_after(steps, settings.epochs) if len(tuning.validation) else set()
    metrics = _Metrics(tuning.folder / METRICS, worker, after_step=step)
    checkpointed = time.monotonic()
    for rows in itertools.islice(_rows_of_steps(tuning), step, None):
        torch.manual_seed(hash((tuning.seed, step, worker.rank)))  # dropout's: the same ones after a restart
        rate = model.learning_rate(step, steps, settings.learning_rate)
        line = _step(strategy, tuning, rows, rate, worker)
        step += 1
        metrics.write({"step": step, "steps": steps, "at": round(time.time(), 1), "learning_rate": rate, **line})
        if step in validated:
            line = _validate(strategy, tuning, worker)
            metrics.write({"step": step, **line})
            if settings.keep == "best" and line["validation_loss"] < lowest:
                lowest = line["validation_loss"]
                checkpoints.save(tuning.folder / BEST, step, strategy.save_adapter, worker)
        is_due = time.monotonic() - checkpointed > 60 * settings.checkpoint_minutes
        if step == steps or worker.of_first(is_due):  # one clock decides for all
            state = {"step": step, "lowest_validation_loss": lowest, "strategy": settings.strategy, "workers": worker.count}
            metrics.upload()  # first: lines after the checkpoint that is gone on from are removed, missing ones would stay missing
            _save(strategy, tuning.folder / CHECKPOINTS, state, worker)
            checkpointed = time.monotonic()


def _rows_of_steps(tuning: Tuning) -> Iterator[list[int]]:
    """The row numbers of each step of the run."""
    for epoch in range(tuning.settings.epochs):
        yield from steps_of_epoch(tuning.rows.lengths, tuning.settings.examples_per_step, tuning.seed, epoch)


def last_state(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint of a training folder says of itself: step, strategy, workers; None without one."""
    newest = checkpoints.newest(folder / CHECKPOINTS)
    return artifacts.read_json(newest / _STATE) if newest else None


def _restored(checkpoint: Path | None) -> tuple[int, float]:
    """The steps that are done, and the lowest validation loss so far."""
    if checkpoint is None:
        return 0, math.inf
    state = artifacts.read_json(checkpoint / _STATE)
    return state["step"], state["lowest_validation_loss"]


def _save(strategy: Strategy, folder: Path, state: dict[str, Any], worker: Worker) -> None:
    def write(checkpoint: Path) -> None:
        strategy.save(checkpoint)
        if worker.rank == 0:
            artifacts.write_json(checkpoint / _STATE, state)

    checkpoints.save(folder, state["step"], write, worker)


def _validated_after(steps: int, epochs: int) -> set[int]:
    """After how many steps the validation loss is measured: several times an epoch, and at the end."""
    times = epochs * _VALIDATIONS_PER_EPOCH
    return {max(1, round(steps * number / times)) for number in range(1, times + 1)}


def _step(strategy: Strategy, tuning: Tuning, rows: Sequence[int], rate: float, worker: Worker) -> dict[str, Any]:
    """One optimiser step on some rows: its metrics."""
    started = time.monotonic()
    citation_tokens, answer_tokens = tuning.rows.target_tokens[rows].sum(axis=0).tolist()
    sums = _Sums()
    for batch in _own_batches(strategy, tuning, tuning.rows, rows, worker):
        part = loss_sums(strategy.model, batch)
        strategy.backward(weighted(part.citation, part.answer, citation_tokens, answer_tokens, tuning.settings.citation_weight))
        sums.add(part, batch)
    gradient_norm = strategy.step(rate)
    total = sums.over_all(worker, strategy.device)
    seconds = time.monotonic() - started
    lengths = tuning.rows.lengths[rows].tolist()
    peak = model.peak_flops()
    return {
        **_losses(total, citation_tokens, answer_tokens, tuning.settings),
        "gradient_norm": gradient_norm,
        "tokens": sum(lengths),
        "padding": round(1 - sum(lengths) / total.places, 4),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(sum(lengths) / seconds, 1),
        "memory_mb": round(model.peak_memory() / 1e6),
        "share_of_peak": round(strategy.cost.flops(lengths) / seconds / worker.count / peak, 4) if peak else None,
    }


def _validate(strategy: Strategy, tuning: Tuning, worker: Worker) -> dict[str, Any]:
    """The loss on the validation rows."""
    import torch

    rows = range(len(tuning.validation))
    citation_tokens, answer_tokens = tuning.validation.target_tokens.sum(axis=0).tolist()
    sums = _Sums()
    strategy.model.eval()
    with torch.no_grad():
        for batch in _own_batches(strategy, tuning, tuning.validation, rows, worker):
            sums.add(loss_sums(strategy.model, batch), batch)
    strategy.model.train()
    losses = _losses(sums.over_all(worker, strategy.device), citation_tokens, answer_tokens, tuning.settings)
    return {f"validation_{name}": value for name, value in losses.items()}


def _own_batches(strategy: Strategy, tuning: Tuning, rows: Rows, numbers: Sequence[int], worker: Worker) -> Iterable[Batch]:
    """A worker's batches of some rows, on its device.

    Where the workers go in lockstep, one that has fewer batches than another gets batches that teach nothing.
    """
    batching = batching_here(tuning.settings.batching)

    def of_worker(rank: int) -> list[list[int]]:
        own = share(numbers, rows.lengths, replace(worker, rank=rank))
        return batches(own, rows.lengths, tuning.settings.max_tokens, batching)

    own = of_worker(worker.rank)
    for batch in own:
        yield collate([rows[row] for row in batch], batching).on(strategy.device)
    if strategy.in_lockstep:
        most = max(len(of_worker(rank)) for rank in range(worker.count))
        row = rows[min(numbers, key=lambda row: rows.lengths[row])]
        nothing = collate([replace(row, targets=[NONE] * len(row))], batching)
        for _ in range(most - len(own)):
            yield nothing.on(strategy.device)


def batching_here(wanted: Batching | Literal["auto"]) -> Batching:
    """``auto`` packs where flash attention keeps packed rows apart at no cost, and else batches by length (``make bench-train``)."""
    if wanted == "auto":
        return "packed" if model.attention() == "flash_attention_2" else "by-length"
    return wanted


@dataclass
class _Sums:
    """Of a worker's batches."""

    citation: float = 0.0
    answer: float = 0.0
    citations_right: float = 0.0
    places: float = 0.0  # of tokens, padding included

    def add(self, part: LossSums, batch: Batch) -> None:
        self.citation += part.citation.item()
        self.answer += part.answer.item()
        self.citations_right += part.citations_right
        self.places += batch.token_ids.numel() if bool((batch.targets != NONE).any()) else 0

    def over_all(self, worker: Worker, device: Any) -> "_Sums":
        import torch

        sums = torch.tensor([self.citation, self.answer, self.citations_right, self.places], dtype=torch.float64, device=device)
        worker.sum(sums)
        return _Sums(*sums.tolist())


def _losses(sums: _Sums, citation_tokens: int, answer_tokens: int, settings: Training) -> dict[str, Any]:
    import torch

    citation, answer = torch.tensor([sums.citation, sums.answer], dtype=torch.float64)
    return {
        "loss": weighted(citation, answer, citation_tokens, answer_tokens, settings.citation_weight).item(),
        "citation_loss": sums.citation / citation_tokens,
        "answer_loss": sums.answer / answer_tokens,
        "citation_accuracy": sums.citations_right / citation_tokens,
        "target_tokens": citation_tokens + answer_tokens,
    }


class _Metrics:
    """``metrics.jsonl``: the first worker appends a line at a time; those of steps that are done again are removed first."""

    def __init__(self, path: Path, worker: Worker, after_step: int):
        self._path = path if worker.rank == 0 else None
        self._not_uploaded: list[dict[str, Any]] = []
        if self._path:
            whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []  # a line that was cut by a kill is none
            kept = [line for line in whole if json.loads(line)["step"] <= after_step]
            storage.write(path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, line: dict[str, Any]) -> None:
        if not self._path:
            return
        if storage.is_local(self._path):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        else:
            self._not_uploaded.append(line)

    def upload(self) -> None:
        """In an object store lines cannot be appended: all are written again, with each checkpoint."""
        if self._path and self._not_uploaded:
            lines = "".join(f"{json.dumps(line)}\n" for line in self._not_uploaded)
            storage.write(self._path, self._path.read_bytes() + lines.encode())
            self._not_uploaded.clear()

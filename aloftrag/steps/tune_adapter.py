"""Step 5b (paper 3.5): LoRA-tune the language model on the chats, with Ray Train.

    chats -> adapter (a PEFT adapter folder) and metrics.jsonl

A worker's loop is ``training.loop.train``; here stand the worker group, its checkpoints and its restarts. A killed worker
restarts the group from the last checkpoint; a killed driver, run again, goes on from it too.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from aloftrag import artifacts, models
from aloftrag.artifacts import Run
from aloftrag.engine import pool
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.training import loop
from aloftrag.training.rows import TrainingRow, training_row

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

MAKES = "adapter"
BESIDE: tuple[str, ...] = ()
NEEDS: tuple[str, ...] = ("chats",)
VERSION = 1

_WORKER_RESTARTS = 3


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the adapter, beside the chats; never how many workers made it."""
    training = run.job.training.model_dump(mode="json", exclude={"preset", "checkpoint_minutes", "validation"})
    return {"models.llm": models.identity(run.job.models.llm, "llm"), "training": training, "seed": run.job.seed}


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``adapter`` artifact; returns what was trained and the last losses."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    chats, too_long = count_chats(run.job, run.artifact("chats"))
    on_gpu = pool.gpus() > 0
    workers = worker_count(run.job, pool.gpus())
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "job": run.job.model_dump(mode="json"),
            "chats": str(run.artifact("chats")),
            "metrics": str(work / loop.METRICS),
        },
        torch_config=process_group(workers, on_gpu),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu, resources_per_worker={"GPU": 1} if on_gpu else {"CPU": 1}),
        run_config=RunConfig(
            # The same name and place: Ray Train takes up the last checkpoint that it finds there.
            name="checkpoints",
            storage_path=str(work),
            failure_config=FailureConfig(max_failures=_WORKER_RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None, "training ended without a checkpoint"
    artifacts.fresh_folder(folder)
    with result.checkpoint.as_directory() as checkpoint:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(Path(checkpoint) / name, folder / name)
    metrics = artifacts.read_jsonl(work / loop.METRICS)
    loop.write_metrics(folder / loop.METRICS, metrics)
    last = [line for line in metrics if "loss" in line][-1]
    return {
        "chats": chats,
        "chats_too_long": too_long,
        "steps": last["steps"],
        "tokens": sum(line.get("tokens", 0) for line in metrics),
        "target_tokens": sum(line.get("target_tokens", 0) for line in metrics),
        "last_loss": round(last["loss"], 4),
    }


def count_chats(job: Job, chats: Path) -> tuple[int, int]:
    """How many chats there are to train on, and how many are too long; raises ``RunError`` when there is none."""
    rows, too_long = training_rows(job, chats, "train")
    if not rows:
        limit = models.longest_prompt(job.models.llm, job.training.max_tokens)
        raise RunError(
            f"tune_adapter: each of the {too_long} chats is longer than {limit} tokens, what training.max_tokens and the model allow"
        )
    return len(rows), too_long


def process_group(workers: int, on_gpu: bool) -> "TorchConfig":
    """How the workers find each other: not at all when there is one, for which torch would ask a name server for its name."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class NoProcessGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return TorchConfig(backend="nccl" if on_gpu else "gloo") if workers > 1 else NoProcessGroup()


def worker_count(job: Job, gpus: int) -> int:
    """As configured, else as many as there are GPUs and the examples of a step can be divided among; one on a CPU."""
    wanted, examples = job.resources.training_workers, job.training.examples_per_step
    if isinstance(wanted, int):
        return wanted
    return max(count for count in range(1, max(1, gpus) + 1) if examples % count == 0)


def training_rows(job: Job, chats: Path, split: str) -> tuple[list[TrainingRow], int]:
    """The tokenised chats of a split, in the order of their ids; and how many were too long for ``training.max_tokens`` or the model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.local_folder(job.models.llm, "llm"))
    frame = pl.scan_parquet(chats / "*.parquet").filter(pl.col("split") == split).sort("chat_id").select("chat_id", "messages").collect()
    rows = [training_row(tokenizer, chat_id, messages) for chat_id, messages in frame.iter_rows()]
    longest = models.longest_prompt(job.models.llm, job.training.max_tokens)
    fitting = [row for row in rows if len(row) <= longest]
    return fitting, len(rows) - len(fitting)


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import os

    import ray.train
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size()))
    job = Job.model_validate_json(_json(config["job"]))
    rows, _ = training_rows(job, Path(config["chats"]), "train")
    validation, _ = training_rows(job, Path(config["chats"]), "validation")
    context = ray.train.get_context()
    worker = loop.Worker(context.get_world_rank(), context.get_world_size())

    def checkpoint(save: Any, progress: loop.Progress) -> None:
        if worker.rank:
            ray.train.report({"step": progress.step})
            return
        loop.write_metrics(Path(config["metrics"]), progress.metrics)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report({"step": progress.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def train(resume_from: Path | None) -> None:
        folder = models.local_folder(job.models.llm, "llm")
        loop.train(folder, rows, validation, job.training, job.seed, worker, checkpoint=checkpoint, resume_from=resume_from)

    last = ray.train.get_checkpoint()
    if last is None:
        train(None)
    else:
        with last.as_directory() as folder:
            train(Path(folder))


def _json(data: dict[str, Any]) -> str:
    import json

    return json.dumps(data)

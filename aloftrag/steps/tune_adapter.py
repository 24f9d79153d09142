"""Step 5b (paper 3.5): LoRA-tune the language model on the chats, with Ray Train.

    chats -> adapter (a PEFT adapter folder, with a model card) and metrics.jsonl

A worker's loop is ``training.loop.train``; here stand the worker group and its restarts. A killed worker or node restarts the
group from the last checkpoint; a killed driver, run again, goes on from it too. A group that fails again and again without a
checkpoint in between stops the run, and so does one that the nodes that are left cannot hold.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aloftrag import artifacts, cluster, models, storage
from aloftrag.artifacts import Run
from aloftrag.cpus import usable_cpus
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.training import base_model, checkpoints, loop, model_card, row_store
from aloftrag.training.worker import Worker

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchConfig

MAKES = "adapter"
BESIDE: tuple[str, ...] = ()
NEEDS: tuple[str, ...] = ("chats",)
VERSION = 2

_RESTARTS = 3  # without a checkpoint in between
_WAITS = 10  # of a minute each, for GPUs that all workers find a place on; then it is asked anew how many there are
_SECONDS_TO_GIVE_BACK = 20
_SPLITS = ("train", "validation")


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the adapter, beside the chats; not how many workers made it, or how they batched."""
    of_chats = {"validation", "unanswerable", "questions_per_chat"}
    never_seen = {"preset", "checkpoint_minutes", "batching", "strategy"}
    training = run.job.training.model_dump(mode="json", exclude=of_chats | never_seen)
    return {"models.llm": models.identity(run.job.models.llm, "llm"), "training": training, "seed": run.job.seed}


def make(run: Run, folder: Path, work: Path) -> dict[str, Any]:
    """Write the ``adapter`` artifact; returns what was trained and the last losses."""
    chats = run.artifact("chats")
    rows = dict(storage.scan(chats).group_by("split").len().collect().iter_rows())
    if run.job.training.keep == "best" and not rows.get("validation"):
        raise RunError(
            f"tune_adapter: training.validation = {run.job.training.validation} keeps no chat to tell the best adapter by; set it higher"
        )
    began = time.time()
    _train(run, chats, work)
    ended = loop.last_state(work)
    assert ended is not None, "training ended without a checkpoint"
    kept = checkpoints.newest(work / (loop.BEST if run.job.training.keep == "best" else loop.CHECKPOINTS))
    assert kept is not None, "training ended without a checkpoint"
    artifacts.fresh_folder(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        storage.copy(kept / name, folder / name)
    base_model.name_base_model(folder, run.job)
    storage.copy(work / loop.METRICS, folder / loop.METRICS)
    metrics = artifacts.read_jsonl(folder / loop.METRICS)
    started = round(metrics[0]["at"] - metrics[0]["seconds"] - began, 1)
    counts = {"chats": rows["train"], "workers": ended["workers"], "start_seconds": max(0.0, started), **_counts(metrics)}
    model_card.write(run, counts)
    return counts


def _train(run: Run, chats: Path, work: Path) -> None:
    """Run worker groups until each step is done.

    Raises ``RunError`` when groups fail again and again without a checkpoint in between, and for more workers than the cluster can hold.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kind = "GPU" if cluster.gpus() else "CPU"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    fit = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=here)(_fit)
    while True:
        begun_at = loop.last_state(work)
        workers = worker_count(run.job, _gpus(run), functools.partial(_free_for, kind))
        _hold_workers(run.job, workers, kind, begun_at)
        group = fit.remote(run.job, workers, kind, chats, work, _RESTARTS)
        has_ended = False
        try:
            has_ended = _has_ended(group, workers, kind)
        finally:
            if not has_ended:  # of one that has, Ray might still note the end, and crash on what is cancelled
                ray.cancel(group, force=True)
        if not has_ended:
            continue
        failure = ray.get(group)
        if failure is None:
            return
        if not _found_no_place(failure) and loop.last_state(work) == begun_at:
            raise RunError(f"tune_adapter: {_reason(failure)}; run the same command again to go on from {_position(begun_at)}") from failure


def _fit(job: Job, workers: int | tuple[int, int], kind: str, chats: Path, work: Path, restarts: int) -> "TrainingFailedError | None":
    """Run a worker group until each step is done; returns what ended it before that.

    A task of its own: Ray Train handles Ctrl-C in the process that it is called in, from then on, and what is cancelled with this
    process is all that it leads.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    try:
        TorchTrainer(
            functools.partial(_worker, job, chats, work),
            torch_config=_process_group(workers, kind, job),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=kind == "GPU",
                resources_per_worker={kind: 1},
                # Another size begins at the last checkpoint: no more often than there is a new one.
                elastic_resize_monitor_interval_s=120 * job.training.checkpoint_minutes,
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(work),
                failure_config=FailureConfig(max_failures=restarts, controller_failure_limit=_WAITS),
            ),
        ).fit()
    except TrainingFailedError as error:
        return error
    return None


def _has_ended(group: "ObjectRef[Any]", workers: int | tuple[int, int], kind: str) -> bool:
    """Wait for the end of a worker group; False when there were too few GPUs (or CPUs) for it at so many looks in a row.

    Ray gives up a number of workers that finds no place, but waits with a range without an end.
    """
    import ray
    from ray.train.v2._internal.constants import DEFAULT_WORKER_GROUP_START_TIMEOUT_S, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

    every = float(os.environ.get(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, DEFAULT_WORKER_GROUP_START_TIMEOUT_S))
    missing = 0
    while not ray.wait([group], timeout=every)[0]:
        missing = missing + 1 if _there(kind) < _fewest(workers) else 0
        if missing > _WAITS:
            return False
    return True


def _gpus(run: Run) -> int:
    """How many GPUs training may take at the moment."""
    if run.job.training.strategy == "ddp":
        return cluster.gpus_for(run)
    # What DeepSpeed parts among its workers may not fit on a share, and cannot go on with another number of them.
    return min(cluster.gpus(), run.job.resources.max_gpus or cluster.gpus())


def _found_no_place(error: "TrainingFailedError") -> bool:
    """Whether the workers waited for nodes, or for GPUs that others hold, and nothing of theirs failed."""
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def _reason(error: "TrainingFailedError") -> str:
    """What ended training, in one line."""
    from ray.train import WorkerGroupError

    last_line = str(error).strip().splitlines()[-1]
    if not isinstance(error, WorkerGroupError):
        return f"the training workers could not be started, or what leads them failed ({last_line})"
    failures = error.worker_failures.items()
    said = [f"worker {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in failures if str(failure).strip()]
    return f"the training workers failed {_RESTARTS + 1} times in a row ({said[0] if said else last_line})"


def _position(state: dict[str, Any] | None) -> str:
    return f"step {state['step']}" if state else "the start"


def worker_count(job: Job, gpus: int, free_for: Callable[[int], int]) -> int | tuple[int, int]:
    """As configured, else as many as there are GPUs and the examples of a step can be divided among; one on a CPU.

    Of a range no more than ``free_for(most)``: Ray would wait for those that another run holds, and not begin with fewer.
    """
    wanted, examples = job.resources.training_workers, job.training.examples_per_step
    if isinstance(wanted, tuple):
        fewest, most = wanted
        return fewest, max(fewest, min(most, free_for(most)))
    if isinstance(wanted, int):
        return wanted
    return max(count for count in range(1, max(1, gpus) + 1) if examples % count == 0)


def _free_for(kind: str, workers: int) -> int:
    """How many GPUs (or CPUs) are free, once there are enough or what the last step held has been given back."""
    import ray

    for _ in range(_SECONDS_TO_GIVE_BACK):
        if ray.available_resources().get(kind, 0) >= workers:
            break
        time.sleep(1)
    return int(ray.available_resources().get(kind, 0))


def _there(kind: str) -> int:
    """How many GPUs or CPUs the cluster has."""
    import ray

    return int(ray.cluster_resources().get(kind, 0))


def _fewest(workers: int | tuple[int, int]) -> int:
    return workers if isinstance(workers, int) else workers[0]


def _hold_workers(job: Job, workers: int | tuple[int, int], kind: str, state: dict[str, Any] | None) -> None:
    """Raises ``RunError`` for more workers than the cluster can hold, and for others than those that a checkpoint can go on with."""
    if (fewest := _fewest(workers)) > (there := _there(kind)):
        raise RunError(
            f"tune_adapter: resources.training_workers asks for {fewest} workers of one {kind} each, and the cluster has {there}"
        )
    if state is None:
        return
    strategy = job.training.strategy
    if state["strategy"] != strategy:
        raise RunError(
            f"tune_adapter: training was begun with {state['strategy']} and goes on with it, not with {strategy}: "
            f"set training.strategy={state['strategy']}, or begin anew with --redo tune_adapter"
        )
    if strategy != "ddp" and state["workers"] != workers:
        raise RunError(
            f"tune_adapter: {strategy} was begun with {state['workers']} workers and goes on with as many, not {workers}: "
            f"set resources.training_workers={state['workers']}, or begin anew with --redo tune_adapter"
        )


def _process_group(workers: int | tuple[int, int], kind: str, job: Job) -> "TorchConfig":
    """How the workers find each other: not at all when there is one, for which torch would ask a name server for its name."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class NoProcessGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    alone = workers == 1 and job.training.strategy == "ddp"
    return NoProcessGroup() if alone else TorchConfig(backend=_backend(kind))


def _backend(kind: str) -> str:
    return "nccl" if kind == "GPU" else "gloo"


def _worker(job: Job, chats: Path, work: Path) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import torch

    context = ray.train.get_context()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, usable_cpus() // context.get_local_world_size()))
        os.environ["DS_ACCELERATOR"] = "cpu"
    on_disk = storage.scratch(work / f"chats-{artifacts.id_of(chats)}")
    rows, validation = (row_store.open_or_write(chats, split, on_disk / split) for split in _SPLITS)
    tuning = loop.Tuning(models.local_folder(job.models.llm, "llm"), rows, validation, job.training, job.seed, work)
    loop.train(tuning, Worker(context.get_world_rank(), context.get_world_size()))


def _counts(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [line for line in metrics if "loss" in line]
    validated = [line["validation_loss"] for line in metrics if "validation_loss" in line]
    tokens = sum(line["tokens"] for line in steps)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)), "a step is missing in metrics.jsonl, or there twice"
    return {
        "steps": len(steps),
        "tokens": tokens,
        "target_tokens": sum(line["target_tokens"] for line in steps),
        "tokens_per_second": round(tokens / max(1e-3, sum(line["seconds"] for line in steps)), 1),
        "last_loss": round(steps[-1]["loss"], 4),
        **({"lowest_validation_loss": round(min(validated), 4)} if validated else {}),
    }

"""The thin Ray part around embedding and searching: blocks of rows through actors that hold a model, or through tasks."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from aloftrag import artifacts, cluster
from aloftrag.artifacts import Run


def embedders(run: Run) -> int:
    """How many embedders run side by side: as configured, else one on each GPU of the run's share, one on a machine without."""
    wanted = run.job.resources.embedder_replicas
    return max(1, cluster.gpus_for(run)) if wanted == "auto" else wanted


def map_in_actors(rows: Any, actor: type, arguments: tuple[Any, ...], count: int) -> Any:
    """``rows`` block by block through so many actors of class ``actor``."""
    from ray.data import ActorPoolStrategy

    return artifacts.map_blocks(
        rows,
        actor,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=count),
        num_cpus=0,
        num_gpus=1 if cluster.gpus() else 0,
    )


def map_in_tasks(rows: Any, function: Callable[[pa.Table], pa.Table], at_once: int | None = None) -> Any:
    """``rows`` through tasks that ask an index: two, so that while one sorts, the other one's rows are searched.

    ``at_once``: how many rows a task takes; None: a block.
    """
    from ray.data import TaskPoolStrategy

    return rows.map_batches(function, batch_size=at_once, batch_format="pyarrow", num_cpus=1, compute=TaskPoolStrategy(size=2))

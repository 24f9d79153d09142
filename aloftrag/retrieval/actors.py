"""The thin Ray part around embedding and searching: blocks of rows through actors that hold a model, or through tasks."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from aloftrag.engine import pool
from aloftrag.job import Resources


def map_in_actors(rows: Any, actor: type, arguments: tuple[Any, ...], resources: Resources) -> Any:
    """``rows`` block by block through actors of class ``actor``, one on each GPU, one on a machine without."""
    from ray.data import ActorPoolStrategy

    wanted = resources.embedder_replicas
    return rows.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=max(1, pool.gpus()) if wanted == "auto" else wanted),
        num_cpus=1,
        num_gpus=1 if pool.gpus() else 0,
    )


def map_in_tasks(rows: Any, function: Callable[[pa.Table], pa.Table], at_once: int | None = None) -> Any:
    """``rows`` through tasks that ask an index: two, so that while one sorts, the other one's rows are searched.

    ``at_once``: how many rows a task takes; None: a block.
    """
    from ray.data import TaskPoolStrategy

    return rows.map_batches(function, batch_size=at_once, batch_format="pyarrow", num_cpus=1, compute=TaskPoolStrategy(size=2))

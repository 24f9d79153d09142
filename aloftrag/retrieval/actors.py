"""The thin Ray part around embedder and index: a pool of actors that each hold one."""

from typing import Any

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

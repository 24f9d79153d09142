"""An engine in every actor of a Ray Data pool: the thin Ray part around a coroutine per row."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aloftrag.engine import StartEngine
from aloftrag.engine.port import Engine
from aloftrag.job import Resources

if TYPE_CHECKING:
    from ray.data import Dataset

Row = dict[str, Any]
AskAboutRow = Callable[[Engine, Row], Awaitable[Row]]

# Blocks that an actor works on at once: while the last rows of one are finished, the next has begun.
BLOCKS_IN_FLIGHT = 3


class _EngineActor:
    """Holds one engine; answers the rows of several blocks at once."""

    def __init__(self, start_engine: StartEngine, ask: AskAboutRow, schema: pa.Schema):
        self._engine = start_engine()
        self._ask = ask
        self._schema = schema

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        rows = await asyncio.gather(*(self._ask(self._engine, row) for row in block.to_pylist()))
        yield pa.Table.from_pylist(rows, schema=self._schema)


def ask_rows(dataset: "Dataset", ask: AskAboutRow, start_engine: StartEngine, schema: pa.Schema, resources: Resources) -> "Dataset":
    """One row of ``schema`` for each row of ``dataset``, made by the coroutine ``ask`` with an engine."""
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        _EngineActor,
        fn_constructor_args=(start_engine, ask, schema),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=replicas(resources), max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT, max_concurrent_calls_per_actor=BLOCKS_IN_FLIGHT
        ),
        udf_modifying_row_count=False,
        num_cpus=1,
        num_gpus=resources.tensor_parallel if gpus() else 0,
    )


def gpus() -> int:
    """How many GPUs the cluster has."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def replicas(resources: Resources) -> int:
    """How many engines run side by side: as configured, else as many as the GPUs hold, one on a CPU."""
    if resources.engine_replicas != "auto":
        return resources.engine_replicas
    return max(1, gpus() // resources.tensor_parallel)

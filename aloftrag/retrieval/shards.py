"""The shards of an index: made from a folder of vectors, and alive in Ray actors over the cluster.

    index/*.parquet               the vectors, as they were embedded
    index/shards/plan.json        which row groups each shard holds
    index/shards/quantiser.faiss  what the inverted lists of all shards share (ivf only)
    index/shards/NNNNN/           a shard
    index/shards/index.json       kind, lists to look at, recall; written last

How many shards there are depends on the cluster; what a search finds does not.
"""

import contextlib
import importlib
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aloftrag import artifacts, cluster, storage
from aloftrag.artifacts import RowGroup
from aloftrag.cpus import usable_cpus
from aloftrag.errors import RunError
from aloftrag.retrieval import ivf
from aloftrag.retrieval.index import Index, index_of
from aloftrag.retrieval.shard import Shard
from aloftrag.retrieval.vectors import dimensions_of, vectors_of

_OF_A_NODES_MEMORY = 1 / 4  # that one shard's vectors may take
_COPIES_WHILE_MADE = 3  # of its vectors: as read, in the order of the ids, and their codes
_OF_A_GPU = (
    0.01  # that an actor reserves: a shard goes through whichever GPU there is in blocks, and a dead node's shards must find a place
)


def add(index: Path, kind: str) -> None:
    """Make the shards of the vectors in a folder; those that are there already are kept, and hold what was added before.

    Raises ``RunError`` when no node's memory holds a shard that was planned for larger ones.
    """
    import ray

    plan = index / "shards" / "plan.json"  # names without folders: a run may be moved
    shards: list[list[RowGroup]] = artifacts.read_json(plan) if plan.is_file() else []
    held = {name for groups in shards for name, *_ in groups}
    groups = [(Path(path).name, group, rows) for path, group, rows in artifacts.row_groups(index)]
    new = [group for group in groups if group[0] not in held]
    dimensions = dimensions_of(index)
    if new:
        shards += split(new, _shards_for(new, dimensions))
        artifacts.write_json(plan, shards)
    quantiser = index / "shards" / "quantiser.faiss"
    if kind == "ivf" and not quantiser.is_file():
        ray.get(ray.remote(_train_quantiser).options(num_cpus=1).remote(index, groups, quantiser))
    folders = [_folder(index, number) for number in range(len(shards))]
    tasks = []
    largest = max(node["Resources"]["memory"] for node in _nodes())
    for part, folder in zip(shards, folders, strict=True):
        if storage.is_whole(folder):
            continue
        # A run may go on with smaller nodes than it was begun on: what no node has would be waited for, or tried, without an end.
        if (size := _bytes(part, dimensions)) > largest:
            raise RunError(
                f"{folder}: this shard of the index takes {size / 2**30:.1f} GiB of memory, the largest node has {largest / 2**30:.1f}: "
                "go on with nodes as large as before, or cut the index anew with --redo mine_negatives"
            )
        memory = min(size * _COPIES_WHILE_MADE, largest)
        make = ray.remote(_make_shard).options(num_cpus=1, memory=memory, scheduling_strategy="SPREAD", max_retries=-1)
        tasks.append(make.remote(index, part, folder, quantiser if kind == "ivf" else None))
    ray.get(tasks)
    for unfinished in (index / "shards").glob("unfinished-*"):  # of a run that was killed
        storage.remove(unfinished)


def finish(index: Path, **noted: Any) -> None:
    """Note what a search needs to know: ``kind`` and ``nprobe``."""
    artifacts.write_json(index / "shards" / "index.json", noted)


def split(groups: Sequence[RowGroup], parts: int) -> list[list[RowGroup]]:
    """Row groups in parts of about as many rows, none of them empty; fewer parts than wanted where there are fewer groups."""
    total = sum(rows for *_, rows in groups)
    found: dict[int, list[RowGroup]] = {}
    seen = 0
    for group in groups:
        # The middle of a group says to which of the equal parts it belongs.
        found.setdefault(min(parts - 1, int((seen + group[2] / 2) * parts / total)), []).append(group)
        seen += group[2]
    return list(found.values())


class _ShardActor:
    """Holds one shard."""

    def __init__(self, folder: Path):
        _use_all_cores()
        self._shard = Shard.load(storage.local(folder))

    def ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """What the shard's ``method`` returns."""
        return getattr(self._shard, method)(*arguments)


class ShardActors:
    """Asks all shards, each in its actor; can be sent to other processes."""

    def __init__(self, actors: Sequence[Any]):
        self._actors = actors

    def __call__(self, method: str, *arguments: Any) -> list[Any]:
        """The answer of each shard."""
        import ray

        sent = ray.put(arguments)  # once for all of them
        return ray.get([actor.ask.remote(method, sent) for actor in self._actors])


@contextlib.contextmanager
def alive(*indexes: Path) -> Iterator[ShardActors]:
    """The shards of some indexes in actors, while this lasts; an actor whose node dies is started again on another."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folders = [folder for index in indexes for folder in _folders(index)]
    gpus = _OF_A_GPU if cluster.gpus() else 0
    # Placed one by one. Ray heeds that for actors that ask for something, so each asks for a byte: CPUs may all be taken by tasks
    # that wait for a shard which is started again. Where other runs have all GPUs of a node, its shard goes to another.
    nodes = itertools.cycle([node["NodeID"] for node in _nodes() if not gpus or node["Resources"].get("GPU")])
    actors = [
        ray.remote(_ShardActor)
        .options(
            num_cpus=0,
            num_gpus=gpus,
            memory=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True),
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(folder)
        for folder, node in zip(folders, nodes, strict=False)
    ]
    try:
        yield ShardActors(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def about(index: Path) -> dict[str, Any] | None:
    """What ``finish`` noted; None when it has not."""
    path = index / "shards" / "index.json"
    return artifacts.read_json(path) if path.is_file() else None


def nprobe_of(index: Path) -> int | None:
    """How many inverted lists a search looks at; None where it is exact. Raises ``RunError`` when the index is not finished."""
    noted = about(index)
    if noted is None:
        raise RunError(f"{index}: no finished index there; run the job with --redo mine_negatives")
    nprobe: int | None = noted["nprobe"]
    return nprobe


def open_here(index: Path) -> Index:
    """An index in this process; its files are mapped into memory."""
    nprobe = nprobe_of(index)
    return index_of([Shard.load(storage.local(folder)) for folder in _folders(index)], nprobe)


def _folders(index: Path) -> list[Path]:
    """The folders of an index' shards; raises ``RunError`` when one is missing."""
    plan = artifacts.read_json(index / "shards" / "plan.json")
    folders = [_folder(index, number) for number in range(len(plan))]
    missing = [folder for folder in folders if not storage.is_whole(folder)]
    if missing:
        raise RunError(f"{missing[0]}: this shard of the index is missing; run the job with --redo mine_negatives")
    return folders


def _folder(index: Path, number: int) -> Path:
    return index / "shards" / f"{number:05d}"


def _nodes() -> list[dict[str, Any]]:
    """The nodes that tasks can run on, which a head without CPUs is not; always in the same order."""
    import ray

    return sorted((node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")), key=lambda node: node["NodeID"])


def _shards_for(groups: Sequence[RowGroup], dimensions: int) -> int:
    """As many as there are nodes, and more where their memory asks for it."""
    nodes = _nodes()
    smallest = min(node["Resources"]["memory"] for node in nodes) * _OF_A_NODES_MEMORY
    return max(len(nodes), math.ceil(_bytes(groups, dimensions) / smallest))


def _bytes(groups: Sequence[RowGroup], dimensions: int) -> int:
    return 2 * dimensions * sum(rows for *_, rows in groups)


def _make_shard(index: Path, groups: Sequence[RowGroup], folder: Path, quantiser: Path | None) -> None:
    _use_all_cores()
    rows = sum(rows for *_, rows in groups)
    ids: list[bytes] = []
    vectors = None
    for name, group, _ in groups:
        table = storage.parquet(index / name).read_row_group(group)
        part = vectors_of(table)
        vectors = np.empty((rows, part.shape[1]), np.float16) if vectors is None else vectors
        vectors[len(ids) : len(ids) + len(part)] = part
        ids += [text_id.encode() for text_id in table["text_id"].to_pylist()]
    assert vectors is not None
    trained = None
    if quantiser is not None:
        import faiss

        trained = faiss.read_index(str(storage.local(quantiser)))
    with storage.published(folder) as unfinished:  # a task that is thought dead may still write too
        Shard.of(np.array(ids), vectors, trained).save(unfinished)


def _train_quantiser(index: Path, groups: Sequence[RowGroup], destination: Path) -> None:
    import faiss

    _use_all_cores()
    texts = sum(rows for *_, rows in groups)
    wanted = ivf.TRAINING_TEXTS_PER_LIST * ivf.lists_for(texts)
    parts = []
    for name, group, _ in groups:
        table = storage.parquet(index / name).read_row_group(group)
        parts.append(table.filter(_drawn(table["text_id"], texts, wanted)))
    sample = pa.concat_tables(parts).sort_by("text_id")  # so that neither the files nor their order matter
    storage.write(destination, faiss.serialize_index(ivf.train_quantiser(vectors_of(sample), texts)).tobytes())


def _drawn(ids: pa.ChunkedArray, rows: int, wanted: int) -> pa.Array:
    """Which rows are in a sample of about so many: decided by their ids alone."""
    step = max(1, rows // wanted)
    return pa.array([zlib.crc32(row_id.encode()) % step == 0 for row_id in ids.to_pylist()])


def _use_all_cores() -> None:
    """Ray gives a worker one thread unless it asks for more CPUs."""
    import threadpoolctl

    importlib.import_module("faiss")  # only what is loaded by now gets the threads
    threadpoolctl.threadpool_limits(usable_cpus())


def read_sample(questions: Path, count: int) -> pa.Table:
    """About ``count`` rows of a table of questions with vectors, by id: the same ones however the table is cut into files."""
    total, parts = artifacts.count_rows(questions), []
    for path, group, _ in artifacts.row_groups(questions):
        file = storage.parquet(path)
        drawn = _drawn(file.read_row_group(group, columns=["question_id"])["question_id"], total, count)
        if pc.any(drawn).as_py():
            parts.append(file.read_row_group(group).filter(drawn))
    return pa.concat_tables(parts).sort_by("question_id")

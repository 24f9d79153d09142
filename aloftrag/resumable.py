"""Rows that are mapped and written so that a kill loses no more of them than what is in flight.

Ray Data commits each written block with a file of its ids, a checkpoint, in two phases. Its own way to leave out what is written is an
actor that holds a CPU for as long as the rows are mapped: of several resumed runs, such actors can hold all CPUs of a small cluster while
each waits for one to read with. So here rows are left out as they are read.
"""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from aloftrag import artifacts, storage
from aloftrag.artifacts import RowGroup
from aloftrag.errors import RunError

if TYPE_CHECKING:
    from ray.data import Dataset

PENDING = ".pending.parquet"  # how Ray Data names a checkpoint file that is not committed
BEGUN = "begun.json"  # in a folder of checkpoints: how many rows there are, how many were written before, since when
SLICE_ROWS = 1_000_000  # whose ids are held in memory


def map_rows(
    source: Path,
    id_column: str,
    transform: "Callable[[Dataset], Dataset]",
    destination: Path,
    checkpoints: Path,
    schema: pa.Schema | None = None,
    columns: list[str] | None = None,
) -> None:
    """Read rows with unique ids, transform them, write them: resumable at the row.

    ``transform`` keeps one row per row with its id. A killed call, called again with the same folders, does only the rows
    that are not written yet. Raises when the written ids are not the read ones, each once, or the columns not those of ``schema``.
    """
    from ray.data.checkpoint import CheckpointConfig

    storage.make_folder(destination)
    begun = {"total": artifacts.count_rows(source), "before": committed_rows(checkpoints), "at": time.time()}
    artifacts.write_json(checkpoints / BEGUN, begun)
    for number, groups in enumerate(_slices(artifacts.row_groups(source))):
        checkpoint = checkpoints / f"slice-{number:05d}"
        if committed_rows(checkpoint) == sum(rows for _, _, rows in groups):
            continue  # killed after the last write: no engine has to start to find nothing to do
        _end_commits(checkpoint)
        dataset = artifacts.blocks_of(groups, columns, _without(_committed_ids(checkpoint, id_column), id_column))
        # The manifest is written first and the checkpoint deleted after: a success that deletes it early would double the rows.
        dataset.context.checkpoint_config = CheckpointConfig(
            id_column=id_column,
            checkpoint_path=str(checkpoint),
            delete_checkpoint_on_success=False,
            checkpoint_manager_cls=_unfiltered(),
        )
        transform(dataset).write_parquet(str(destination))
    if schema:
        artifacts.hold_schema(destination, schema)
    _hold_ids(source, destination, id_column)


def committed_rows(checkpoints: Path) -> int:
    """How many rows are known as written under a folder of checkpoints."""
    with ThreadPoolExecutor() as readers:  # an object store takes its time for each file
        return sum(readers.map(_rows_of_committed, _committed(checkpoints)))


@functools.cache
def _rows_of_committed(path: Path) -> int:
    """Of a file that does not change any more; there may be very many, and they are counted again and again."""
    return artifacts.rows_of(path)


def _committed(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.rglob("*.parquet") if not path.name.endswith(PENDING)]


def _committed_ids(checkpoint: Path, id_column: str) -> np.ndarray:
    """The ids that are known as written, sorted."""
    files = [str(path) for path in _committed(checkpoint)]
    if not files:
        return np.array([], bytes)
    return np.sort(pl.scan_parquet(files, glob=False).select(id_column).collect()[id_column].to_numpy().astype(bytes))


def _without(written: np.ndarray, id_column: str) -> Callable[[pa.Table], pa.Table]:
    """What leaves those rows of a block whose ids are not in ``written``, which every task looks at in its node's object store."""
    import ray

    if not len(written):
        return lambda rows: rows
    kept = ray.put(written)

    def left(rows: pa.Table) -> pa.Table:
        ids, known = rows[id_column].to_numpy().astype(bytes), ray.get(kept)
        places = np.searchsorted(known, ids)
        return rows.filter(pa.array(known[np.minimum(places, len(known) - 1)] != ids))

    return left


@functools.cache
def _unfiltered() -> Any:
    """The manager of Ray's checkpoints, but that there is nothing left for its filter: what a kill left half committed is removed."""
    from ray.data.checkpoint import CheckpointManager

    class Unfiltered(CheckpointManager):
        def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
            self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
            return None, 0

    return Unfiltered


def _slices(groups: list[RowGroup]) -> Iterator[list[RowGroup]]:
    rows = 0
    current: list[RowGroup] = []
    for group in groups:
        if current and rows + group[2] > SLICE_ROWS:
            yield current
            rows, current = 0, []
        current.append(group)
        rows += group[2]
    if current:
        yield current


def _end_commits(checkpoint: Path) -> None:
    """End the commits that a kill broke off in an object store.

    Ray commits a file by a move, which such a store makes of a copy and a removal. Where both are there the rows are written; Ray would
    take them for unwritten, and remove them.
    """
    for pending in checkpoint.glob(f"*{PENDING}"):
        if pending.with_name(pending.name.removesuffix(PENDING) + ".parquet").is_file():
            storage.remove_file(pending)


def _hold_ids(source: Path, destination: Path, id_column: str) -> None:
    """Every row exactly once: the counts agree, and no written id occurs twice."""
    written = storage.scan(destination).select(pl.len(), pl.col(id_column).n_unique().alias("ids")).collect()
    rows, ids = written.row(0)
    expected = artifacts.count_rows(source)
    if not rows == ids == expected:
        raise RunError(
            f"{destination}: {rows} rows with {ids} different ids were written for {expected} rows read; run this step again with --redo"
        )

"""Writes that are resumed, on Ray; and when an artifact counts as finished."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aloftrag import artifacts, resumable
from aloftrag.errors import RunError
from tests.steps import tables

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("twice", pa.int64())])
ROWS = [{"id": f"r{n:02d}", "twice": n} for n in range(12)]  # in two files, even and odd, and in blocks of two
IDS = [row["id"] for row in ROWS]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tables.write(tmp_path / "source", SCHEMA, ROWS, files=2, group_rows=2)


@pytest.fixture
def map_rows(source: Path, tmp_path: Path, ray_session: None) -> Any:
    """``map_rows(change)`` maps the source block by block; returns the ids that ``change`` was given, written down by itself."""
    calls = iter(range(100))

    def run(change: Callable[[pa.Table], pa.Table]) -> list[str]:
        log = tmp_path / f"log-{next(calls)}"
        log.mkdir()

        def logged(block: pa.Table) -> pa.Table:
            for key in block["id"].to_pylist():
                (log / key).touch()
            return change(block)

        def transform(rows: Any) -> Any:
            return artifacts.map_blocks(rows, logged)

        try:
            resumable.map_rows(source, "id", transform, tmp_path / "made", tmp_path / "checkpoints", SCHEMA)
        finally:
            run.given = sorted(path.name for path in log.iterdir())  # type: ignore[attr-defined]
        return run.given  # type: ignore[attr-defined]

    return run


def doubled(block: pa.Table) -> pa.Table:
    return block.set_column(1, SCHEMA.field("twice"), pa.array([2 * n for n in block["twice"].to_pylist()], pa.int64()))


def fails_after_the_others(bad: str, committed: Path, others: int) -> Callable[[pa.Table], pa.Table]:
    """A change that fails on one block, when all the others are written for good."""

    def fail(block: pa.Table) -> pa.Table:
        if bad not in block["id"].to_pylist():
            return doubled(block)
        while len(list(committed.rglob("*[!g].parquet"))) < others:  # not those that are *.pending.parquet
            time.sleep(0.05)
        raise ValueError("the machine burns")

    return fail


def test_a_write_that_broke_off_is_resumed_without_making_finished_blocks_again(
    map_rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "SLICE_ROWS", 6)  # two slices: one is whole when the other breaks off
    with pytest.raises(Exception, match="the machine burns"):
        map_rows(fails_after_the_others("r05", tmp_path / "checkpoints", others=5))
    assert map_rows.given == IDS
    finished = [row["id"] for row in tables.read(tmp_path / "made", "id")]
    assert len(finished) == len(set(finished)) == 10
    assert len(list((tmp_path / "checkpoints").glob("slice-*"))) == 2

    assert map_rows(doubled) == ["r05", "r07"] == sorted(set(IDS) - set(finished))  # the block that failed, and no other
    assert tables.read(tmp_path / "made", "id") == [{"id": row["id"], "twice": 2 * row["twice"]} for row in ROWS]


def test_a_commit_of_which_only_the_copy_was_made_is_one(map_rows: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the machine burns"):
        map_rows(fails_after_the_others("r05", tmp_path / "checkpoints", others=5))
    committed = list((tmp_path / "checkpoints").rglob("*[!g].parquet"))
    for file in committed[:2]:  # as an object store has it between the two parts of a move
        shutil.copyfile(file, file.with_name(file.name.removesuffix(".parquet") + resumable.PENDING))
    assert map_rows(doubled) == ["r05", "r07"]
    assert tables.read(tmp_path / "made", "id") == [{"id": row["id"], "twice": 2 * row["twice"]} for row in ROWS]


def test_a_resumed_write_needs_one_cpu_at_a_time(map_rows: Any, tmp_path: Path) -> None:
    """Or of several resumed runs each could hold one and wait for another."""
    import ray

    with pytest.raises(Exception, match="the machine burns"):
        map_rows(fails_after_the_others("r05", tmp_path / "checkpoints", others=5))

    class Holder:
        def is_there(self) -> bool:
            return True

    holder = ray.remote(num_cpus=ray.cluster_resources()["CPU"] - 1)(Holder).remote()
    assert ray.get(holder.is_there.remote())
    done: list[list[str]] = []
    resumed = threading.Thread(target=lambda: done.append(map_rows(doubled)), daemon=True)
    resumed.start()
    resumed.join(120)
    ray.kill(holder)
    assert done == [["r05", "r07"]]


def test_blocks_are_written_as_they_are_done_however_many_runs_there_are_beside(map_rows: Any, tmp_path: Path) -> None:
    import ray
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    def waits_for_the_others(block: pa.Table) -> pa.Table:
        deadline = time.monotonic() + 60
        while "r05" in block["id"].to_pylist() and time.monotonic() < deadline:
            if len(list((tmp_path / "checkpoints").rglob("*[!g].parquet"))) == 5:
                (tmp_path / "the others were written").touch()
                break
            time.sleep(0.05)
        return doubled(block)

    coordinator, kinds = get_or_create_autoscaling_coordinator(), ["CPU", "GPU", "memory", "object_store_memory"]
    others = [f"another-{number}" for number in range(int(ray.cluster_resources()["CPU"]) + 1)]
    for name in others:  # as a dataset of Ray's announces itself while it is computed
        ray.get(coordinator.request_resources.remote(requester_id=name, resources=[], expire_after_s=600, request_remaining=kinds))
    try:
        map_rows(waits_for_the_others)
    finally:
        for name in others:
            ray.get(coordinator.cancel_request.remote(name))
    assert (tmp_path / "the others were written").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda block: block.slice(1) if "r03" in block["id"].to_pylist() else block, "11 rows with 11 different ids .* 12 rows read"),
        (lambda block: pa.concat_tables([block, block.slice(1)]) if "r03" in block["id"].to_pylist() else block, "13 rows with 12 "),
        (lambda block: block.take([0, 0]) if "r03" in block["id"].to_pylist() else block, "12 rows with 11 "),
    ],
    ids=["loses a row", "doubles a row", "loses one and doubles another"],
)
def test_a_transform_that_loses_or_doubles_a_row_is_an_error(change: Any, error: str, map_rows: Any) -> None:
    with pytest.raises(RunError, match=error):
        map_rows(change)


def test_a_transform_that_makes_other_types_is_an_error(map_rows: Any) -> None:
    with pytest.raises(AssertionError, match="twice is"):
        map_rows(lambda block: block.set_column(1, "twice", pa.array(["2"] * block.num_rows)))


def test_a_block_is_a_row_group_whatever_the_files_and_however_small(source: Path, ray_session: None) -> None:
    blocks = artifacts.map_blocks(artifacts.read_blocks(source), lambda block: {"rows": [len(block["id"])]})
    assert [block["rows"] for block in blocks.take_all()] == [2] * 6


# Finished, and with which settings.


def test_an_artifact_is_finished_with_its_own_settings_only(tmp_path: Path) -> None:
    artifact = tmp_path / "texts"
    artifact.mkdir()
    settings = {"seed": 0, "models.llm": "abc", "training": {"epochs": 1}}
    assert not artifacts.is_finished(artifact, settings, "load_texts")

    artifacts.finish(artifact, "load_texts", settings, {"texts": 3}, 1.5)

    assert artifacts.is_finished(artifact, dict(reversed(settings.items())), "load_texts")  # the order of keys is no setting
    with pytest.raises(RunError) as raised:
        artifacts.is_finished(artifact, {**settings, "seed": 1}, "load_texts")
    assert "seed was 0 and is now 1" in str(raised.value)
    assert "--redo load_texts" in str(raised.value)
    assert "models.llm" not in str(raised.value)


def test_the_digest_of_files_knows_names_and_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("one")
    second.write_text("two")
    digests = {artifacts.files_digest([first, second]), artifacts.files_digest([first]), artifacts.files_digest([second])}
    assert artifacts.files_digest([first, second]) in digests
    first.write_text("two")
    second.write_text("one")
    digests.add(artifacts.files_digest([first, second]))
    assert len(digests) == 4

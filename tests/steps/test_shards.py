"""The index's shards: made from files of vectors, alive in actors."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloftrag.errors import RunError
from aloftrag.retrieval import shards
from aloftrag.retrieval.index import Index
from aloftrag.retrieval.vectors import vector_column

TEXTS, DIMENSIONS = 600, 16


def vectors_of(texts: range) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(TEXTS, DIMENSIONS))[texts.start : texts.stop]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(index: Path, texts: range, name: str) -> None:
    """Vectors as step 4 writes them: a file in row groups of 50."""
    index.mkdir(exist_ok=True)
    ids = pa.array([f"{number:04d}" for number in texts])
    pq.write_table(pa.table({"text_id": ids, "vector": vector_column(vectors_of(texts))}), index / name, row_group_size=50)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for number in range(4):
        write_vectors(tmp_path / "index", range(100 * number, 100 * (number + 1)), f"{number}.parquet")
    return tmp_path / "index"


@pytest.fixture
def into(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``into(n)``: what is added from now on becomes n shards."""
    return lambda count: monkeypatch.setattr(shards, "_shards_for", lambda *_: count)


def found(index: Path, nprobe: int | None = None) -> tuple[list[Any], list[Any], list[int]]:
    """What 20 queries find in the actors."""
    queries = np.random.default_rng(1).normal(size=(20, DIMENSIONS))
    with shards.alive(index) as ask:
        ids, similarities = Index(ask, nprobe).search(queries, 7)
        return ids.tolist(), similarities.tolist(), Index(ask).rank(queries, ids[:, 6].tolist()).tolist()


def made_when(index: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in index.glob("shards/[0-9]*/ids.npy")}


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_any_number_of_shards_finds_the_same(kind: str, index: Path, into: Any, tmp_path: Path, ray_session: None) -> None:
    nprobe = None if kind == "exact" else 8  # of 8 lists
    results = []
    for count in (1, 2, 5):
        into(count)
        copy = tmp_path / f"in-{count}"
        copy.mkdir()
        for path in index.glob("*.parquet"):
            os.link(path, copy / path.name)
        shards.add(copy, kind)
        assert len(made_when(copy)) == count
        results.append(found(copy, nprobe))
        shards.finish(copy, kind=kind, nprobe=nprobe)
        here = shards.open_here(copy).search(np.random.default_rng(1).normal(size=(20, DIMENSIONS)), 7)
        assert (here[0].tolist(), here[1].tolist()) == results[-1][:2]
    assert results[0][2] == [7] * 20
    assert results[0] == results[1] == results[2]


def test_a_missing_shard_is_an_error_and_not_a_smaller_index(index: Path, into: Any, ray_session: None) -> None:
    into(3)
    shards.add(index, "exact")
    shards.finish(index, kind="exact", nprobe=None)
    shutil.rmtree(index / "shards" / "00001")
    with pytest.raises(RunError, match=r"shards/00001: this shard of the index is missing.*--redo mine_negatives"):
        shards.open_here(index)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_texts_are_added_without_making_anew_what_is_there(kind: str, index: Path, into: Any, ray_session: None) -> None:
    into(2)
    shards.add(index, kind)
    before = made_when(index)
    quantiser = [path.read_bytes() for path in index.glob("shards/quantiser.faiss")]
    shards.add(index, kind)  # nothing new
    assert made_when(index) == before
    write_vectors(index, range(400, 600), "more.parquet")
    shards.add(index, kind)
    after = made_when(index)
    assert len(after) == 4
    assert {name: when for name, when in after.items() if name in before} == before
    assert [path.read_bytes() for path in index.glob("shards/quantiser.faiss")] == quantiser
    queries = vectors_of(range(0, 600))
    ids, _ = shards_here(index).search(queries, 1)
    assert ids[:, 0].tolist() == [f"{number:04d}" for number in range(600)]


def shards_here(index: Path) -> Index:
    shards.finish(index, kind="exact", nprobe=None)
    return shards.open_here(index)


def test_only_shards_that_are_not_whole_are_made_after_a_kill(index: Path, into: Any, ray_session: None) -> None:
    into(3)
    shards.add(index, "exact")
    undisturbed, before = found(index), made_when(index)
    (index / "shards" / "00001").rename(index / "shards" / "unfinished-00001-killed")
    into(5)  # the cluster is another one by now
    shards.add(index, "exact")
    after = made_when(index)
    assert after.keys() == before.keys()
    assert not list(index.glob("shards/unfinished-*"))
    assert {name for name in before if after[name] != before[name]} == {"00001"}
    assert found(index) == undisturbed


def test_a_shard_that_no_node_can_hold_any_more_is_an_error_and_not_tried_for_ever(
    index: Path, into: Any, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    into(2)
    shards.add(index, "exact")
    monkeypatch.setattr(shards, "_nodes", lambda: [{"Resources": {"memory": 200 * DIMENSIONS * 2 - 1}}])
    shards.add(index, "exact")  # they are made already
    shutil.rmtree(index / "shards" / "00001")
    with pytest.raises(RunError, match=r"00001: this shard of the index takes .* or cut the index anew with --redo mine_negatives"):
        shards.add(index, "exact")


def test_a_shard_whose_actor_is_killed_answers_from_another(index: Path, into: Any, ray_session: None) -> None:
    import ray

    into(2)
    shards.add(index, "exact")
    undisturbed = found(index)
    queries = np.random.default_rng(1).normal(size=(20, DIMENSIONS))
    with shards.alive(index) as ask:
        pids = [ray.get(actor.__ray_call__.remote(lambda _: os.getpid())) for actor in ask._actors]
        os.kill(pids[0], signal.SIGKILL)
        ids, similarities = Index(ask).search(queries, 7)
    assert (ids.tolist(), similarities.tolist()) == undisturbed[:2]


def test_a_search_in_two_indexes_is_one_in_all_their_texts(index: Path, into: Any, tmp_path: Path, ray_session: None) -> None:
    into(1)
    write_vectors(tmp_path / "added", range(400, 410), "0.parquet")
    for folder in (index, tmp_path / "added"):
        shards.add(folder, "exact")
    queries = vectors_of(range(390, 410))
    with shards.alive(index, tmp_path / "added") as ask:
        assert Index(ask).search(queries, 1)[0][:, 0].tolist() == [f"{number:04d}" for number in range(390, 410)]


@pytest.mark.parametrize(("sizes", "parts"), [([5, 5, 5, 5], 2), ([1, 1, 1, 9], 2), ([256] * 3, 5), ([1], 3), ([3, 7, 2, 8, 4, 6], 4)])
def test_row_groups_are_split_into_parts_of_about_as_many_rows(sizes: list[int], parts: int) -> None:
    groups = [("file", number, size) for number, size in enumerate(sizes)]
    split = shards.split(groups, parts)
    assert [group for part in split for group in part] == groups
    assert all(split)
    assert len(split) <= parts
    assert max(sum(rows for *_, rows in part) for part in split) <= sum(sizes) / parts + max(sizes)


def test_a_sample_is_drawn_by_id_however_the_table_is_cut(tmp_path: Path) -> None:
    ids = [f"{number:05d}-0" for number in range(4000)]
    table = pa.table({"question_id": ids, "vector": vector_column(np.ones((4000, 2)))})
    samples = []
    for cut, order in ((50, 1), (700, -1)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        for number, start in enumerate(range(0, 4000, 1000)[::order]):
            pq.write_table(table.slice(start, 1000), folder / f"{number}.parquet", row_group_size=cut)
        samples.append(shards.read_sample(folder, 400)["question_id"].to_pylist())
        assert shards.read_sample(folder, 10_000).num_rows == 4000
    assert samples[0] == samples[1] == sorted(samples[0])
    assert 300 < len(samples[0]) < 500

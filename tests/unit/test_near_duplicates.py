"""Near-duplicates: close vectors, the same wording, whole clusters."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloftrag import job
from aloftrag.retrieval import near_duplicates
from aloftrag.retrieval.index import Index, index_of
from aloftrag.retrieval.shard import Shard
from aloftrag.retrieval.vectors import vector_column

MILL = "The mill at Norwick was built by Ada Moss in 1812. It ground rye for nine villages until it burned down."
TEXTS = {
    "copy": MILL,
    "cased": MILL.upper(),
    "longer": f"{MILL} It stands again.",
    "other": "Ada Moss built Norwick's first mill, which ground the rye of nine villages from 1812 until a fire destroyed it.",
    "short": "Mill.",
}


@pytest.mark.parametrize(("of", "copies"), [("copy", ["cased", "longer"]), ("longer", ["copy", "cased"]), ("other", []), ("short", [])])
def test_copies_share_their_wording_whatever_else_is_close(of: str, copies: list[str]) -> None:
    close = {of: [text_id for text_id in TEXTS if text_id != of]}
    assert near_duplicates.copies(close, TEXTS) == {of: copies}


@pytest.mark.parametrize(
    ("text", "copy", "other"),
    [
        (
            "水车建于1812年，由艾达·莫斯建造，为九个村庄磨黑麦。",
            "水车建于1812年，由艾达·莫斯建造，为九个村庄磨黑麦",
            "渡轮每天中午从乌尔姆出发，冬天除外。",
        ),
        ("โรงสีสร้างขึ้นในปี 1812 โดยเอดา มอสส์", "โรงสีสร้างขึ้นในปี 1812 โดยเอดา มอสส์ ", "เรือข้ามฟากออกตอนเที่ยงทุกวัน"),
    ],
)
def test_scripts_without_spaces_have_shingles_too(text: str, copy: str, other: str) -> None:
    assert near_duplicates.copies({"a": ["b", "c"]}, {"a": text, "b": copy, "c": other}) == {"a": ["b"]}


def test_texts_are_close_from_the_given_similarity_on() -> None:
    angles = {"a": 0, "b": 10, "c": 20, "d": 60}
    vectors = np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in angles.values()])
    index = index_of([Shard.of(np.array(list(angles), bytes), vectors)])
    close = near_duplicates.close_texts(index, list(angles), vectors, float(np.cos(np.radians(12))))
    assert close == [["b"], ["a", "c"], ["b"], []]


def test_a_text_with_more_copies_than_are_first_looked_at_finds_them_all() -> None:
    vectors = np.repeat(np.array([[0.6, 0.8], [1.0, 0.0]]), [200, 50], axis=0)
    ids = [f"{number:03d}" for number in range(250)]
    index = index_of([Shard.of(np.array(ids, bytes), vectors)])
    close = near_duplicates.close_texts(index, ids, vectors, 0.99)
    assert [len(others) for others in close] == [199] * 200 + [49] * 50


def test_whatever_is_connected_is_one_cluster_named_by_its_smallest_id() -> None:
    pairs = [("d", "c"), ("c", "b"), ("x", "y"), ("y", "x"), ("b", "e")]
    assert near_duplicates.clusters(pairs) == {"b": "b", "c": "b", "d": "b", "e": "b", "x": "x", "y": "x"}
    assert near_duplicates.clusters([]) == {}


def test_fewer_pairs_span_the_same_clusters() -> None:
    copies = {"d": ["c", "z"], "x": ["y"], "c": ["d", "e"], "f": [], "e": ["c", "d", "z"]}
    pairs = near_duplicates.spanning(copies)
    assert {text_id: sorted(others) for text_id, others in pairs.items()} == {"d": ["c", "e", "z"], "x": ["y"], "c": [], "f": [], "e": []}
    spanned = near_duplicates.clusters((text_id, other) for text_id, others in pairs.items() for other in others)
    assert spanned == near_duplicates.clusters((text_id, other) for text_id, others in copies.items() for other in others)


def test_of_each_cluster_the_nearest_stays_but_for_the_questions_own_text() -> None:
    cluster_of = {"a": "a", "b": "a", "c": "c", "d": "c", "e": "c"}
    assert near_duplicates.distinct(list("abcde"), cluster_of) == ["a", "c"]
    assert near_duplicates.distinct(list("abcdef"), cluster_of, own="d") == ["a", "d", "f"]
    assert near_duplicates.distinct(list("abc"), cluster_of, own="g") == ["a", "c"]


def test_the_clusters_of_some_texts_are_read(tmp_path: Path, job_file: Any) -> None:
    folder = tmp_path / "clusters"
    folder.mkdir()
    pl.DataFrame({"text_id": ["a", "b"], "cluster_id": ["a", "a"]}).write_parquet(folder / "0.parquet")
    pl.DataFrame({"text_id": ["c"], "cluster_id": ["c"]}).write_parquet(folder / "1.parquet")
    with_them = job.load(job_file(negatives={"near_duplicate_similarity": 0.9}))
    assert near_duplicates.clusters_of(with_them, folder, ["b", "c", "z"]) == {"b": "a", "c": "c"}
    assert near_duplicates.clusters_of(job.load(job_file()), folder, ["b", "c"]) == {}


def alike(angles: dict[str, float]) -> tuple[Index, np.ndarray]:
    vectors = np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in angles.values()])
    return index_of([Shard.of(np.array(list(angles), bytes), vectors)]), vectors


def test_a_large_cluster_is_looked_past(tmp_path: Path) -> None:
    index, _ = alike({f"c{number:03d}": 1.0 for number in range(100)} | {"x": 20, "y": 30, "z": 40})
    cluster_of = {f"c{number:03d}": "c000" for number in range(100)}
    queries = np.array([[1.0, 0.0]] * 2)
    found = near_duplicates.nearest_distinct(index, queries, 3, [None, "c050"], lambda ids: cluster_of)
    assert [list(texts) for texts in found] == [["c000", "x", "y"], ["c050", "x", "y"]]
    assert found[0]["x"] == pytest.approx(np.cos(np.radians(20)), abs=1e-3)
    (all_there_are,) = near_duplicates.nearest_distinct(index, queries[:1], 10, [None], lambda ids: cluster_of)
    assert list(all_there_are) == ["c000", "x", "y", "z"]


def test_an_added_text_is_in_the_cluster_of_its_copies(tmp_path: Path, job_file: Any) -> None:
    index, vectors = alike({"a": 0, "b": 1, "new": 0.5, "far": 50, "newer": 50})
    texts = {"a": MILL, "b": f"{MILL} It stands again.", "new": MILL.lower(), "far": "A ferry.", "newer": "An owl nests in the oak."}
    folder = tmp_path / "clusters"
    folder.mkdir()
    pl.DataFrame({"text_id": ["a", "b", "far"], "cluster_id": ["a", "b", "far"]}).write_parquet(folder / "0.parquet")
    added = tmp_path / "added"
    added.mkdir()
    pq.write_table(pa.table({"text_id": ["new", "newer"], "vector": vector_column(vectors[[2, 4]])}), added / "0.parquet")
    settings = job.load(job_file(negatives={"near_duplicate_similarity": 0.9}))
    clusters_of = near_duplicates.clusters_with(settings, folder, index, added, lambda ids: {text_id: texts[text_id] for text_id in ids})
    found = clusters_of(["a", "b", "new", "far", "newer"])
    assert found["a"] == found["b"] == found["new"]
    assert len({found["a"], found["far"], found["newer"]}) == 3
    without = near_duplicates.clusters_with(job.load(job_file()), folder, index, added, lambda ids: {})
    assert without(["a", "new"]) == {}

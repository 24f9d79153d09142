"""Step 4: hand-made vectors whose neighbours can be seen, and the real embedder on twelve texts."""

import math
import random
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from aloftrag import schemas
from aloftrag.artifacts import Run
from aloftrag.retrieval.index import ExactIndex
from aloftrag.retrieval.vectors import load_index
from aloftrag.steps import mine_negatives
from tests.steps import mined, tables

# Texts on a circle, in degrees: seen from 0 their order is a b c d e.
DEGREES = {"a": 5, "b": 10, "c": 20, "d": 40, "e": 80}


def vector(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def mine(questions: list[tuple[str, float]], contexts: int, degrees: dict[str, float] = DEGREES, shuffle: int | None = None) -> list[Any]:
    """The negatives of questions, each (its text, its direction); ``shuffle`` mixes both the texts and the questions."""
    numbered = [(f"{text}-{number}", text, direction) for number, (text, direction) in enumerate(questions)]
    texts = list(degrees.items())
    if shuffle is not None:
        random.Random(shuffle).shuffle(numbered)
        random.Random(shuffle + 1).shuffle(texts)
    index = ExactIndex([name for name, _ in texts], np.array([vector(d) for _, d in texts], np.float32))
    rows = pa.Table.from_pylist([{"question_id": key, "text_id": text, "question": f"About {text}?"} for key, text, _ in numbered])
    found = mine_negatives.mine(index, np.array([vector(d) for *_, d in numbered], np.float32), rows, contexts)
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
    assert row["similarities"] == pytest.approx([math.cos(math.radians(DEGREES[name])) for name in negatives], abs=1e-6)
    assert row["positive_similarity"] == pytest.approx(math.cos(math.radians(DEGREES[own])), abs=1e-6)


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
    assert counts == {
        "texts": 12,
        "questions": 12,
        "found_own_text_first": 12,
        "found_own_text_among_contexts": 12,
        "fewer_negatives": 0,
    }


def test_beside_the_negatives_lie_a_vector_and_a_cluster_for_each_text(mined_run: tuple[Run, dict[str, Any]]) -> None:
    run, _ = mined_run
    clusters = pl.read_parquet(run.artifact("clusters") / "*.parquet")
    assert set(clusters["text_id"]) == set(mined.IDS.values())
    assert clusters["cluster_id"].n_unique() == clusters.height == 12
    index = load_index(run.artifact("index"))
    assert set(index.ids) == set(mined.IDS.values())
    vectors = pl.read_parquet(run.artifact("index") / "*.parquet")["vector"].to_numpy().astype(np.float32)
    assert vectors.shape == (12, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)

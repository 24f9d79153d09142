from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloftrag.retrieval.index import ExactIndex

# Four texts on a plane and the query (1, 0): similarities 1, 0.6, 0, -1.
IDS = ["d", "a", "c", "b"]
VECTORS = np.array([[0.6, 0.8], [-1, 0], [1, 0], [0, 1]], np.float32)
QUERY = np.array([[1, 0]], np.float32)


def brute_force(ids: list[str], vectors: np.ndarray, query: np.ndarray) -> list[tuple[str, float]]:
    """All texts, most similar first, ties by id; every product in float64."""
    similarities = [float(sum(float(a) * float(b) for a, b in zip(vector, query, strict=True))) for vector in vectors]
    return sorted(zip(ids, similarities, strict=True), key=lambda pair: (-pair[1], pair[0]))


def test_the_most_similar_texts_come_first_with_their_similarities() -> None:
    ids, similarities = ExactIndex(IDS, VECTORS).search(QUERY, 3)
    assert ids.tolist() == [["c", "d", "b"]]
    assert similarities == pytest.approx(np.array([[1.0, 0.6, 0.0]]))


def test_fewer_texts_than_asked_for_are_all_returned() -> None:
    ids, similarities = ExactIndex(IDS, VECTORS).search(QUERY, 10)
    assert ids.tolist() == [["c", "d", "b", "a"]]
    assert similarities[0, -1] == -1


def test_negative_similarities_are_ordered_too() -> None:
    ids, similarities = ExactIndex(["x", "y", "z"], -VECTORS[[0, 2, 2]] / [[1], [2], [1]]).search(QUERY, 2)
    assert ids.tolist() == [["y", "x"]]
    assert similarities == pytest.approx(np.array([[-0.5, -0.6]]))


@pytest.mark.parametrize("count", [5, 40, 500])
def test_equal_texts_are_ordered_by_id_however_many_there_are(count: int) -> None:
    names = [f"{number:03d}" for number in range(count)]
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    index = ExactIndex(shuffled, np.repeat(QUERY, count, axis=0))
    assert index.search(QUERY, 4)[0].tolist() == [names[:4]]
    assert index.rank(np.repeat(QUERY, 3, axis=0), ["000", "002", names[-1]]).tolist() == [1, 3, count]


def test_a_rank_counts_all_texts_not_only_those_found() -> None:
    index = ExactIndex(IDS, VECTORS)
    assert index.rank(np.repeat(QUERY, 4, axis=0), ["c", "d", "b", "a"]).tolist() == [1, 2, 3, 4]


def test_the_similarity_of_a_text_is_looked_up_by_its_id() -> None:
    found = ExactIndex(IDS, VECTORS).similarity(np.array([[1, 0], [0, 1]], np.float32), ["d", "d"])
    assert found == pytest.approx([0.6, 0.8])


def test_a_text_that_is_not_there_has_no_similarity() -> None:
    with pytest.raises(AssertionError, match="not in the index"):
        ExactIndex(IDS, VECTORS).similarity(QUERY, ["bb"])


@pytest.mark.parametrize("dimensions", [3, 64, 384])
def test_random_vectors_are_found_as_a_brute_force_sort_finds_them(dimensions: int) -> None:
    random = np.random.default_rng(dimensions)
    ids = [f"{number:04x}" for number in random.permutation(300)]
    vectors = random.normal(size=(300, dimensions)).astype(np.float32)
    vectors[100:150] = vectors[:50] + np.float32(1e-7)  # near-ties below what float32 products tell apart
    queries = random.normal(size=(10, dimensions)).astype(np.float32)
    index = ExactIndex(ids, vectors)
    found, similarities = index.search(queries, 20)
    for query, query_ids, query_similarities in zip(queries, found.tolist(), similarities, strict=True):
        expected = brute_force(ids, vectors, query)
        assert query_ids == [text for text, _ in expected[:20]]
        assert query_similarities == pytest.approx([similarity for _, similarity in expected[:20]], rel=1e-12)
        assert index.rank(np.repeat(query[None], 300, axis=0), [text for text, _ in expected]).tolist() == list(range(1, 301))


_vectors = st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=40)


@settings(max_examples=50)
@given(_vectors, st.tuples(*[st.integers(-2, 2)] * 3), st.integers(1, 12), st.randoms(use_true_random=False))
def test_many_ties_are_ordered_by_id_and_the_order_of_insertion_does_not_matter(
    rows: list[tuple[int, ...]], query: tuple[int, ...], k: int, random: Any
) -> None:
    texts = [(f"t{number:02d}", row) for number, row in enumerate(rows)]
    expected = brute_force([text for text, _ in texts], np.array(rows), np.array(query))
    random.shuffle(texts)
    index = ExactIndex([text for text, _ in texts], np.array([row for _, row in texts], np.float32))
    queries = np.array([query], np.float32)
    ids, similarities = index.search(queries, k)
    assert list(zip(ids[0].tolist(), similarities[0].tolist(), strict=True)) == expected[:k]
    assert [int(index.rank(queries, [text])[0]) for text, _ in expected] == list(range(1, len(rows) + 1))

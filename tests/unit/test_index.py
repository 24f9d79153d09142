"""Nearest neighbours, by hand and against a brute-force sort, in one shard and in several."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloftrag.retrieval import ivf
from aloftrag.retrieval.index import Index, index_of
from aloftrag.retrieval.shard import Shard

# Four texts on a plane and the query (1, 0): similarities 1, 0.5, 0, -1.
IDS = ["d", "a", "c", "b"]
VECTORS = np.array([[0.5, 0.75], [-1, 0], [1, 0], [0, 1]])
QUERY = np.array([[1, 0]])


def index_over(ids: list[str], vectors: Any, shards: int = 1) -> Index:
    parts = [part for part in np.array_split(np.arange(len(ids)), shards) if len(part)]
    return index_of([Shard.of(np.array(ids, bytes)[part], np.asarray(vectors)[part]) for part in parts])


def brute_force(ids: list[str], vectors: np.ndarray, query: np.ndarray) -> list[tuple[str, Fraction]]:
    """All texts, most similar first, ties by id; in exact arithmetic over what float16 keeps."""
    exact = [[Fraction(float(value)) for value in vector] for vector in vectors.astype(np.float16)]
    wanted = [Fraction(float(value)) for value in query.astype(np.float16)]
    similarities = [sum((a * b for a, b in zip(vector, wanted, strict=True)), Fraction(0)) for vector in exact]
    return sorted(zip(ids, similarities, strict=True), key=lambda pair: (-pair[1], pair[0]))


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_most_similar_texts_come_first_with_their_similarities() -> None:
    ids, similarities = index_over(IDS, VECTORS).search(QUERY, 3)
    assert ids.tolist() == [["c", "d", "b"]]
    assert similarities.tolist() == [[1.0, 0.5, 0.0]]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_fewer_texts_than_asked_for_are_all_returned(shards: int) -> None:
    ids, similarities = index_over(IDS, VECTORS, shards).search(QUERY, 10)
    assert ids.tolist() == [["c", "d", "b", "a"]]
    assert similarities[0, -1] == -1


def test_negative_similarities_are_ordered_too() -> None:
    ids, similarities = index_over(["x", "y", "z"], [[-0.5, -0.75], [-0.25, 0], [-1, 0]]).search(QUERY, 2)
    assert ids.tolist() == [["y", "x"]]
    assert similarities.tolist() == [[-0.25, -0.5]]


@pytest.mark.parametrize("count", [5, 40, 500])
@pytest.mark.parametrize("shards", [1, 3])
def test_equal_texts_are_ordered_by_id_however_many_there_are(count: int, shards: int) -> None:
    names = [f"{number:03d}" for number in range(count)]
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    index = index_over(shuffled, np.repeat(normalised(np.ones((1, 384))), count, axis=0), shards)
    query = normalised(np.ones((1, 384)))
    assert index.search(query, 4)[0].tolist() == [names[:4]]
    assert index.rank(np.repeat(query, 3, axis=0), ["000", "002", names[-1]]).tolist() == [1, 3, count]


def test_a_rank_counts_all_texts_not_only_those_found() -> None:
    index = index_over(IDS, VECTORS, shards=2)
    assert index.rank(np.repeat(QUERY, 4, axis=0), ["c", "d", "b", "a"]).tolist() == [1, 2, 3, 4]


def test_the_similarity_of_a_text_is_looked_up_by_its_id_in_whichever_shard_it_is() -> None:
    for shards in (1, 2, 4):
        assert index_over(IDS, VECTORS, shards).similarity([[1, 0], [0, 1]], ["d", "d"]).tolist() == [0.5, 0.75]


def test_a_text_that_is_not_there_has_no_similarity() -> None:
    with pytest.raises(AssertionError, match="not in the index"):
        index_over(IDS, VECTORS, shards=2).similarity(QUERY, ["bb"])


@pytest.mark.parametrize("dimensions", [3, 64, 384])
def test_random_vectors_are_found_as_a_brute_force_sort_finds_them_in_any_number_of_shards(dimensions: int) -> None:
    random = np.random.default_rng(dimensions)
    ids = [f"{number:04x}" for number in random.permutation(300)]
    vectors = normalised(random.normal(size=(300, dimensions)))
    vectors[100:150] = vectors[:50] + 1e-7  # many of these are equal in float16, others near
    queries = normalised(random.normal(size=(5, dimensions)))
    expected = [brute_force(ids, vectors, query) for query in queries]
    for shards in (1, 2, 7):
        index = index_over(ids, vectors, shards)
        found, similarities = index.search(queries, 20)
        for query, query_ids, query_similarities, wanted in zip(queries, found.tolist(), similarities, expected, strict=True):
            assert query_ids == [text for text, _ in wanted[:20]]
            assert [Fraction(value) for value in query_similarities.tolist()] == [similarity for _, similarity in wanted[:20]]
            assert index.rank(np.repeat(query[None], 300, axis=0), [text for text, _ in wanted]).tolist() == list(range(1, 301))


def test_more_near_ties_than_there_are_candidates_are_told_apart() -> None:
    """Similarities that float32 cannot order, so that its candidates may be the wrong ones."""
    random = np.random.default_rng(1)
    base = normalised(random.normal(size=(1, 384)))
    vectors = np.repeat(base, 400, axis=0).astype(np.float16)
    for row, column in enumerate(random.integers(0, 384, 400)):  # one value by one unit in the last place
        vectors[row, column] = np.nextafter(vectors[row, column], np.float16(random.choice([-1, 1])))
    ids = [f"{number:03d}" for number in random.permutation(400)]
    expected = [text for text, _ in brute_force(ids, vectors, base[0])[:5]]
    for shards in (1, 3):
        assert index_over(ids, vectors, shards).search(base, 5)[0].tolist() == [expected]


_vectors = st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=40)


@settings(max_examples=50)
@given(_vectors, st.tuples(*[st.integers(-2, 2)] * 3), st.integers(1, 12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_many_ties_are_ordered_by_id_and_neither_the_order_of_insertion_nor_the_shards_matter(
    rows: list[tuple[int, ...]], query: tuple[int, ...], k: int, shards: int, random: Any
) -> None:
    texts = [(f"t{number:02d}", row) for number, row in enumerate(rows)]
    expected = brute_force([text for text, _ in texts], np.array(rows), np.array(query))
    random.shuffle(texts)
    index = index_over([text for text, _ in texts], [row for _, row in texts], shards)
    queries = np.array([query])
    ids, similarities = index.search(queries, k)
    assert list(zip(ids[0].tolist(), similarities[0].tolist(), strict=True)) == expected[:k]
    assert [int(index.rank(queries, [text])[0]) for text, _ in expected] == list(range(1, len(rows) + 1))


# Inverted lists.


@pytest.fixture(scope="module")
def clouds() -> tuple[list[str], np.ndarray, np.ndarray]:
    """2,000 texts in 40 clouds that overlap, and 200 questions near some of them."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(40, 32))
    vectors = normalised(centres[random.integers(0, 40, 2000)] + 1.5 * random.normal(size=(2000, 32)))
    queries = normalised(vectors[random.integers(0, 2000, 200)] + 0.1 * random.normal(size=(200, 32)))
    return [f"{number:04d}" for number in range(2000)], vectors, queries


def with_lists(ids: list[str], vectors: np.ndarray, shards: int) -> list[Shard]:
    quantiser = ivf.train_quantiser(vectors, len(ids))
    parts = np.array_split(np.random.default_rng(0).permutation(len(ids)), shards)
    return [Shard.of(np.array(ids, bytes)[part], vectors[part], quantiser) for part in parts]


def test_all_lists_find_what_an_exact_search_finds_and_few_find_less(clouds: tuple[list[str], np.ndarray, np.ndarray]) -> None:
    ids, vectors, queries = clouds
    shards = with_lists(ids, vectors, 2)
    lists = ivf.lists_for(2000)
    wanted, similarities = index_of(shards).search(queries, 9)
    assert wanted.tolist() == index_over(ids, vectors).search(queries, 9)[0].tolist()
    found_all, similarities_all = index_of(shards, nprobe=lists).search(queries, 9)
    assert found_all.tolist() == wanted.tolist()
    assert similarities_all.tolist() == similarities.tolist()  # of the stored vectors, not of the lists' codes
    recalls = [ivf.recall(index_of(shards, nprobe).search(queries, 9)[0], wanted) for nprobe in (1, 4, lists)]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9 < recalls[-1] == 1.0


def test_a_query_alone_finds_in_the_lists_what_it_finds_beside_others(clouds: tuple[list[str], np.ndarray, np.ndarray]) -> None:
    ids, vectors, queries = clouds
    index = index_of(with_lists(ids, vectors, 1), nprobe=4)
    together = index.search(queries, 9)
    for row in range(0, 200, 40):
        alone = index.search(queries[row : row + 1], 9)
        assert alone[0].tolist() == together[0][row : row + 1].tolist()
        assert alone[1].tolist() == together[1][row : row + 1].tolist()


def test_as_many_lists_are_looked_at_as_the_wanted_recall_takes(clouds: tuple[list[str], np.ndarray, np.ndarray]) -> None:
    ids, vectors, queries = clouds
    shards = with_lists(ids, vectors, 2)
    lists = ivf.lists_for(2000)
    nprobe, recall = ivf.choose_nprobe(lambda nprobe: index_of(shards, nprobe), index_of(shards), queries, 9, lists)
    assert 1 < nprobe < lists
    wanted = index_of(shards).search(queries, 9)[0]
    chosen_on, measured_on = slice(0, 100), slice(100, 200)
    assert ivf.recall(index_of(shards, nprobe).search(queries[chosen_on], 9)[0], wanted[chosen_on]) >= ivf.WANTED_RECALL
    assert ivf.recall(index_of(shards, nprobe * 2 // 3).search(queries[chosen_on], 9)[0], wanted[chosen_on]) < ivf.WANTED_RECALL
    assert recall == ivf.recall(index_of(shards, nprobe).search(queries[measured_on], 9)[0], wanted[measured_on])


def test_lists_with_fewer_texts_than_asked_for_leave_places_empty() -> None:
    vectors = normalised(np.random.default_rng(0).normal(size=(300, 8)))
    shards = with_lists([f"{number:03d}" for number in range(300)], vectors, 1)
    ids, similarities = index_of(shards, nprobe=1).search(vectors[:5], 290)
    missing = np.isinf(similarities)
    assert missing.any()
    assert (ids[missing] == "").all()
    assert all(len(set(row)) == len(row) for row in ([text for text in ids_of if text] for ids_of in ids.tolist()))


def test_products_of_codes_find_nearly_what_an_exact_search_finds(
    clouds: tuple[list[str], np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, vectors, queries = clouds
    monkeypatch.setattr(ivf, "_SCALAR_UP_TO", 0)
    for dimensions in (32, 28):  # 28 has no eight equal parts
        cut, asked = normalised(vectors[:, :dimensions]), normalised(queries[:, :dimensions])
        shards = with_lists(ids, cut, 2)
        wanted, similarities = index_of(shards).search(asked, 9)
        found, found_similarities = index_of(shards, nprobe=ivf.lists_for(2000)).search(asked, 9)
        assert 0.8 < ivf.recall(found, wanted) <= 1.0
        same = found == wanted
        assert (found_similarities[same] == similarities[same]).all()  # of the stored vectors


def test_a_saved_shard_is_the_same_shard(clouds: tuple[list[str], np.ndarray, np.ndarray], tmp_path: Path) -> None:
    ids, vectors, queries = clouds
    (shard,) = with_lists(ids, vectors, 1)
    shard.save(tmp_path / "shard")
    loaded = Shard.load(tmp_path / "shard")
    for nprobe in (None, 3):
        before, after = index_of([shard], nprobe).search(queries, 9), index_of([loaded], nprobe).search(queries, 9)
        assert [part.tolist() for part in before] == [part.tolist() for part in after]


@pytest.mark.parametrize(
    ("texts", "queries", "dimensions", "kind"),
    [(1_000_000, 1_000_000, 384, "exact"), (1_000_000, 1_000_000, 1024, "ivf"), (50_000_000, 10, 1024, "exact")],
)
def test_the_kind_of_index_follows_from_the_size_of_the_search(texts: int, queries: int, dimensions: int, kind: str) -> None:
    chosen, why = ivf.kind(texts, queries, dimensions)
    assert chosen == kind
    assert f"{texts:,} texts x {queries:,} queries" in why

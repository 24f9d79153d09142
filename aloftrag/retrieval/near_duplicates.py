"""Near-duplicates: texts whose vectors are close and whose wording overlaps, in clusters.

Close vectors alone say that texts are about the same thing. What is a copy of another, with a line changed or added, shares most of
its shingles with it: pieces of five characters, within words (in scripts without spaces, within sentences).
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from aloftrag import artifacts, schemas, storage
from aloftrag.job import Job
from aloftrag.retrieval.index import Index
from aloftrag.retrieval.vectors import vectors_of

SHINGLE_OVERLAP = 0.7  # Jaccard, from which on two texts with close vectors are near-duplicates
_SHINGLE = 5  # characters
_DEEPEST = 64  # times as many texts as wanted are looked at before a list stays shorter
_NEIGHBOURS, _MOST_NEIGHBOURS = 32, 2048  # that a text's copies are looked for among: more while all of them are close


def close_texts(index: Index, ids: Sequence[str], vectors: np.ndarray, similarity: float) -> list[list[str]]:
    """For each text the other texts of at least this similarity, most similar first; ``vectors``: [texts, dimensions]."""
    close: list[list[str]] = [[] for _ in ids]
    pending, neighbours = np.arange(len(ids)), _NEIGHBOURS
    while len(pending):
        found, similarities = index.search(vectors[pending], neighbours)
        is_close = similarities >= similarity
        for row, place in enumerate(pending.tolist()):
            close[place] = [text_id for text_id in found[row, is_close[row]].tolist() if text_id != ids[place]]
        if found.shape[1] < neighbours or neighbours == _MOST_NEIGHBOURS:
            break
        pending, neighbours = pending[is_close.all(axis=1)], min(4 * neighbours, _MOST_NEIGHBOURS)
    return close


def copies(close: Mapping[str, Sequence[str]], texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Of the close texts of each text those that share its wording; ``texts`` has all of them by id."""
    if not close:
        return {}
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(analyzer="char_wb", ngram_range=(_SHINGLE, _SHINGLE), binary=True, norm=None, alternate_sign=False)
    rows = {text_id: row for row, text_id in enumerate(texts)}
    shingles = vectorizer.transform(texts.values())
    sizes = np.asarray(shingles.sum(axis=1)).ravel()
    found = {}
    for text_id, others in close.items():
        own, other_rows = rows[text_id], [rows[other] for other in others]
        shared = np.asarray(shingles[other_rows].multiply(shingles[own]).sum(axis=1)).ravel() if others else np.zeros(0)
        overlap = shared / np.maximum(1, sizes[other_rows] + sizes[own] - shared)
        found[text_id] = [other for other, share in zip(others, overlap, strict=True) if share >= SHINGLE_OVERLAP]
    return found


def clusters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The cluster of each text that has near-duplicates: the smallest id of all that it is connected with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    linked = list(pairs)
    if not linked:
        return {}
    ids, places = np.unique(np.array(linked, bytes), return_inverse=True)
    first, second = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(len(ids), len(ids)))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)  # ids are sorted: the first of a component is its smallest
    names = ids.astype(str)
    return dict(zip(names.tolist(), names[smallest][component].tolist(), strict=True))


def spanning(copies: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Fewer pairs that make the same clusters: of each cluster the first text of ``copies`` has all others, the rest have none.

    A large family of copies has as many pairs as the square of its texts; what is gathered of them must not.
    """
    cluster_of = clusters((text_id, other) for text_id, others in copies.items() for other in others)
    members: dict[str, list[str]] = {}
    for text_id, cluster in cluster_of.items():
        members.setdefault(cluster, []).append(text_id)
    found = {}
    for text_id in copies:
        others = members.pop(cluster_of.get(text_id, text_id), [])
        found[text_id] = [other for other in others if other != text_id]
    return found


def clusters_of(job: Job, clusters: Path, ids: Iterable[str]) -> dict[str, str]:
    """The cluster of each of some texts, from the ``clusters`` artifact; nothing is read where no text has near-duplicates."""
    import pyarrow.compute as pc

    if job.negatives.near_duplicate_similarity is None:
        return {}
    wanted = pc.field("text_id").isin(pa.array(sorted(set(ids)), pa.string()))
    found = storage.dataset(artifacts.parquet_files(clusters), schemas.CLUSTERS).to_table(columns=["text_id", "cluster_id"], filter=wanted)
    return dict(zip(found["text_id"].to_pylist(), found["cluster_id"].to_pylist(), strict=True))


def nearest_distinct(
    index: Index, queries: np.ndarray, wanted: int, own: Sequence[str | None], clusters_of: Callable[[Iterable[str]], Mapping[str, str]]
) -> list[dict[str, float]]:
    """For each query the similarities of its most similar texts by id, in descending order, ``wanted`` of them where there are so many.

    Near-duplicates of an earlier one, or of the query's ``own`` text, are left out; ``clusters_of`` tells the clusters of some texts.
    """
    found: list[dict[str, float]] = [{} for _ in own]
    pending, depth = list(range(len(own))), wanted
    while pending:
        ids, similarities = index.search(queries[pending], depth)
        cluster_of = clusters_of({*ids.ravel().tolist(), *(text_id for text_id in own if text_id)} - {""})
        for place, row in enumerate(pending):
            by_id = {text_id: value for text_id, value in zip(ids[place].tolist(), similarities[place].tolist(), strict=True) if text_id}
            found[row] = {text_id: by_id[text_id] for text_id in distinct(list(by_id), cluster_of, own[row])[:wanted]}
        if ids.shape[1] < depth or depth >= _DEEPEST * wanted:
            break
        pending = [row for row in pending if len(found[row]) < wanted]
        depth *= 4
    return found


def distinct(ids: Sequence[str], cluster_of: Mapping[str, str], own: str | None = None) -> list[str]:
    """The texts without those that are near-duplicates of an earlier one, or of ``own`` (which itself is kept)."""
    seen = {cluster_of.get(own, own)} if own is not None else set()
    kept = []
    for text_id in ids:
        cluster = cluster_of.get(text_id, text_id)
        if text_id == own or cluster not in seen:
            kept.append(text_id)
            seen.add(cluster)
    return kept


def clusters_with(
    job: Job, clusters: Path, index: Index, added: Path, texts: Callable[[Iterable[str]], Mapping[str, str]]
) -> Callable[[Iterable[str]], dict[str, str]]:
    """What tells the clusters of texts where some were added to the corpus, which are near-duplicates of others or of each other.

    ``added``: the vectors of these; ``index`` is over all texts, and ``texts`` gives them by id.
    """
    if job.negatives.near_duplicate_similarity is None or not artifacts.parquet_files(added):
        return functools.partial(clusters_of, job, clusters)
    table = pa.concat_tables([artifacts.read_file(path, ["text_id", "vector"]) for path in artifacts.parquet_files(added)])
    ids = table["text_id"].to_pylist()
    close_to = close_texts(index, ids, vectors_of(table), job.negatives.near_duplicate_similarity)
    close = {text_id: others for text_id, others in zip(ids, close_to, strict=True) if others}
    found = copies(close, texts({*close}.union(*close.values())))
    return functools.partial(_merged, job, clusters, _merge(found, clusters_of(job, clusters, {*found}.union(*found.values()))))


def _merge(found: Mapping[str, Sequence[str]], cluster_of: Mapping[str, str]) -> dict[str, str]:
    """Which clusters are one through texts with copies in them, and the name of that one."""
    return clusters((cluster_of.get(one, one), cluster_of.get(other, other)) for one, others in found.items() for other in others)


def _merged(job: Job, folder: Path, merged: Mapping[str, str], ids: Iterable[str]) -> dict[str, str]:
    wanted = list(ids)
    cluster_of = clusters_of(job, folder, wanted)
    return {text_id: merged.get(cluster, cluster) for text_id in wanted for cluster in [cluster_of.get(text_id, text_id)]}

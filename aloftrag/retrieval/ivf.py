"""Inverted lists: which index a collection gets, its coarse quantiser, and how many lists a search looks at.

All shards share one quantiser, so that a list holds neighbours wherever they lie.
"""

import math
from typing import Any

import numpy as np

from aloftrag.retrieval.index import Index

EXACT_UP_TO = 1e15  # texts x questions x dimensions: about half an hour on 32 cores, minutes on a GPU
WANTED_RECALL = 0.99  # of the texts that an exact search finds
SAMPLE_QUESTIONS = 2000  # half to choose how many lists to look at, half to measure what that finds
TRAINING_TEXTS_PER_LIST = 50
_SCALAR_UP_TO = 1e11  # bytes of vectors, one for each dimension; above, product quantisation needs an eighth of that


def kind(texts: int, queries: int, dimensions: int) -> tuple[str, str]:
    """``exact`` or ``ivf`` for a collection, and the reason; queries are questions, and texts whose copies are looked for."""
    size = texts * queries * dimensions
    relation, chosen = ("at most", "exact") if size <= EXACT_UP_TO else ("more than", "ivf")
    return chosen, f"{texts:,} texts x {queries:,} queries x {dimensions} dimensions are {relation} {EXACT_UP_TO:.0e}"


def lists_for(texts: int) -> int:
    """How many inverted lists a collection gets."""
    return max(1, min(round(4 * math.sqrt(texts)), texts // TRAINING_TEXTS_PER_LIST))


def train_quantiser(sample: np.ndarray, texts: int) -> Any:
    """An empty inverted-list index for ``texts`` texts, trained on the vectors of some; ``sample``: [vectors, dimensions]."""
    import faiss

    sample = np.ascontiguousarray(sample, np.float32)
    dimensions = sample.shape[1]
    centroids = faiss.IndexFlatIP(dimensions)
    arguments = (centroids, dimensions, lists_for(texts))
    index: Any
    if texts * dimensions <= _SCALAR_UP_TO:
        index = faiss.IndexIVFScalarQuantizer(*arguments, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False)
    else:
        codes = next(count for count in range(max(1, dimensions // 8), 0, -1) if dimensions % count == 0)  # of equal parts of a vector
        index = faiss.IndexIVFPQ(*arguments, codes, 8, faiss.METRIC_INNER_PRODUCT)
        index.by_residual = False
    index.cp.seed = 0
    index.cp.spherical = True
    index.train(sample)
    return index


def choose_nprobe(index_with: Any, exact: Index, queries: np.ndarray, n: int, lists: int) -> tuple[int, float]:
    """How many lists to look at, and the recall that this gives, measured on questions that were not used to choose.

    ``index_with(nprobe)`` is the index that looks at so many: half as many again, until ``WANTED_RECALL`` of the n most similar texts
    are found.
    """
    wanted, _ = exact.search(queries, n)
    half = (len(queries) + 1) // 2
    nprobe, found = 1, 0.0
    while nprobe < lists:
        before, found = found, recall(index_with(nprobe).search(queries[:half], n)[0], wanted[:half])
        # Where more lists find no more, it is their codes that lose texts.
        if found >= WANTED_RECALL or (found > 0.9 and found - before < 1e-4):
            break
        nprobe = min(math.ceil(1.5 * nprobe), lists)
    measured = queries[half:] if len(queries) > 1 else queries
    return nprobe, recall(index_with(nprobe).search(measured, n)[0], wanted[-len(measured) :])


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the wanted ids that were found; both [queries, n]."""
    return float(np.mean([np.isin(wanted_ids, found_ids).mean() for found_ids, wanted_ids in zip(found, wanted, strict=True)]))

"""Exact nearest neighbours by inner product, with results that do not depend on the order of the texts."""

from collections.abc import Sequence

import numpy as np


class ExactIndex:
    """All vectors in memory, searched by faiss; candidates are rescored in float64, ties go to the smaller id."""

    def __init__(self, ids: Sequence[str], vectors: np.ndarray):
        """``vectors``: float32 [texts, dimensions], row i belongs to ``ids[i]``."""
        import faiss

        order = np.argsort(np.asarray(ids))
        self.ids = np.asarray(ids)[order]
        self._vectors = np.ascontiguousarray(vectors[order], np.float32)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(self._vectors)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar texts of each query: ids [queries, k] and similarities, most similar first.

        With fewer than k texts, all of them. Similarities are inner products in float64.
        """
        k = min(k, len(self))
        # Twice k candidates: float32 may order near-ties at the border differently than float64 does.
        _, candidates = self._index.search(np.ascontiguousarray(queries, np.float32), min(2 * k + 8, len(self)))
        similarities = np.einsum("qd,qcd->qc", queries.astype(np.float64), self._vectors[candidates].astype(np.float64))
        # Positions are in the order of the ids, so they break ties.
        order = np.lexsort((candidates, -similarities), axis=1)[:, :k]
        return self.ids[np.take_along_axis(candidates, order, 1)], np.take_along_axis(similarities, order, 1)

    def similarity(self, queries: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The similarity of query i to text ``ids[i]``, float64 [queries]."""
        positions = np.minimum(np.searchsorted(self.ids, np.asarray(ids)), len(self) - 1)
        assert (self.ids[positions] == np.asarray(ids)).all(), "a text that is not in the index"
        return np.einsum("qd,qd->q", queries.astype(np.float64), self._vectors[positions].astype(np.float64))

    def rank(self, queries: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The 1-based rank of text ``ids[i]`` for query i among all texts, int64 [queries]."""
        own = self.similarity(queries, ids)[:, None]
        similarities = queries.astype(np.float64) @ self._vectors.astype(np.float64).T
        is_before = (similarities > own + 1e-12) | (
            np.isclose(similarities, own, rtol=0, atol=1e-12) & (self.ids < np.asarray(ids)[:, None])
        )
        return 1 + is_before.sum(axis=1)

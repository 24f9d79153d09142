"""Nearest neighbours over all shards: each answers for its own texts, and the answers are merged."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aloftrag.retrieval.shard import Shard

# Calls a method of every shard with the same arguments, and returns what each answers.
AskShards = Callable[..., list[Any]]


class Index:
    """What is found is the same for any number of shards; with ``nprobe`` it is approximate (``exactly`` is not)."""

    def __init__(self, ask_shards: AskShards, nprobe: int | None = None):
        """``nprobe``: how many inverted lists of each shard a search looks at; None where searches are exact."""
        self._ask = ask_shards
        self._nprobe = nprobe

    def exactly(self) -> "Index":
        """The same texts, searched exactly."""
        return Index(self._ask)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar texts of each query: ids [queries, k] and similarities, most similar first, equals by id.

        ``queries``: [queries, dimensions], rounded to float16. Fewer than k texts give all of them. Similarities are inner products
        in float64; where the lists looked at held fewer than k texts, ids are empty and similarities -inf.
        """
        answers = self._ask("search", stored(queries), k, self._nprobe)
        if len(answers) == 1:
            ((ids, similarities),) = answers
        else:
            ids, similarities = (np.concatenate(parts, axis=1) for parts in zip(*answers, strict=True))
            order = np.lexsort((ids, -similarities), axis=1)[:, :k]
            ids, similarities = np.take_along_axis(ids, order, 1), np.take_along_axis(similarities, order, 1)
        return ids.astype(str), similarities

    def similarity(self, queries: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The similarity of query i to text ``ids[i]``, float64 [queries]."""
        similarities = np.fmax.reduce(self._ask("similarity", stored(queries), np.asarray(ids, bytes)))
        assert not np.isnan(similarities).any(), "a text that is not in the index"
        return similarities

    def rank(self, queries: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The 1-based rank of text ``ids[i]`` for query i among all texts, int64 [queries]; exact, from all similarities."""
        own = self.similarity(queries, ids)
        return 1 + np.sum(self._ask("count_before", stored(queries), own, np.asarray(ids, bytes)), axis=0)


def stored(vectors: np.ndarray) -> np.ndarray:
    """Vectors as an index stores and compares them."""
    return np.ascontiguousarray(vectors, np.float16)


def index_of(shards: Sequence[Shard], nprobe: int | None = None) -> Index:
    """An index over shards in this process."""
    return Index(lambda method, *arguments: [getattr(shard, method)(*arguments) for shard in shards], nprobe)

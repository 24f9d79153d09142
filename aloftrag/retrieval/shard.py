"""A shard of the index: some of the texts' vectors, and the nearest neighbours among them.

Vectors are stored as float16, and queries are rounded to it. The products of such numbers are multiples of 2^-48, which float64
adds up without rounding while sums stay below 32; those of normalised vectors stay below 2. So a similarity is the same number in
whichever shard, on whichever device and in whatever order it is computed, and what is found does not depend on the shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aloftrag.cpus import usable_cpus

_BLOCK = 32_768  # texts scored at once
_SPARE = 8  # candidates more than twice those asked for, among which float64 chooses


class Shard:
    """Vectors with their ids, at least one; ``lists``, an inverted-list index of faiss over the same rows, makes ``search`` approximate."""

    def __init__(self, ids: np.ndarray, vectors: np.ndarray, lists: Any = None):
        """``ids``: bytes [texts] in ascending order; ``vectors``: float16 [texts, dimensions], normalised, row i belongs to ``ids[i]``."""
        self.ids = ids
        self._vectors = vectors
        self._lists = lists
        self._candidates = 16 if type(lists).__name__ == "IndexIVFPQ" else 2  # for each wanted: products of coarse codes say little

    @classmethod
    def of(cls, ids: np.ndarray, vectors: np.ndarray, quantiser: Any = None) -> "Shard":
        """A shard of texts in any order; ``quantiser`` is a trained, empty inverted-list index."""
        order = np.argsort(ids)
        ids, vectors = ids[order], np.ascontiguousarray(vectors[order], np.float16)
        if quantiser is None:
            return cls(ids, vectors)
        import faiss

        lists = faiss.clone_index(quantiser)
        for start in range(0, len(ids), _BLOCK):
            lists.add(vectors[start : start + _BLOCK].astype(np.float32))
        return cls(ids, vectors, lists)

    def save(self, folder: Path) -> None:
        """Write the shard."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "vectors.npy", self._vectors)
        if self._lists is not None:
            import faiss

            faiss.write_index(self._lists, str(folder / "lists.faiss"))
        np.save(folder / "ids.npy", self.ids)

    @classmethod
    def load(cls, folder: Path) -> "Shard":
        """A saved shard; its files are mapped into memory, not read."""
        lists = None
        if (folder / "lists.faiss").is_file():
            import faiss

            lists = faiss.read_index(str(folder / "lists.faiss"), faiss.IO_FLAG_MMAP)
        return cls(np.load(folder / "ids.npy"), np.load(folder / "vectors.npy", mmap_mode="r"), lists)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: np.ndarray, k: int, nprobe: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar texts of each query, most similar first and equals by id: ids [queries, k], similarities float64.

        ``queries``: float16 [queries, dimensions]. ``nprobe``: how many inverted lists are looked at; None, or a shard without
        lists, searches all texts, exactly. Fewer than k texts give all of them. A place for which no text was found has similarity -inf.
        """
        k, is_exact = min(k, len(self)), nprobe is None or self._lists is None
        wide = queries.astype(np.float32)
        candidates = min((2 if is_exact else self._candidates) * k + _SPARE, len(self))
        if is_exact:
            rough, positions = nearest(wide, self._vectors, candidates)
        else:
            rough, positions = _nearest_in_lists(self._lists, wide, candidates, nprobe or 1)
        similarities = self._similarities(queries, positions)
        # Positions are in the order of the ids, so they break ties.
        order = np.lexsort((positions, -similarities), axis=1)[:, :k]
        positions, similarities = np.take_along_axis(positions, order, 1), np.take_along_axis(similarities, order, 1)
        if is_exact and candidates < len(self):
            # A text that is no candidate is at most as similar, to float32's precision, as the last one that is.
            doubtful = np.flatnonzero(similarities[:, -1] <= rough[:, -1] + self._float32_error(wide))
            if len(doubtful):
                positions[doubtful], similarities[doubtful] = self._search_in_float64(queries[doubtful], k, similarities[doubtful, -1])
        ids = self.ids[positions]
        ids[positions < 0] = b""
        return ids, similarities

    def similarity(self, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The similarity of query i to text ``ids[i]``, float64 [queries]; nan where the text is not in this shard."""
        positions = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        similarities = self._similarities(queries, positions[:, None])[:, 0]
        return np.where(self.ids[positions] == ids, similarities, np.nan)

    def count_before(self, queries: np.ndarray, similarities: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """How many texts query i finds before a text of id ``ids[i]`` and similarity ``similarities[i]``, int64 [queries].

        Counted in float32, on the GPU when there is one; what is too close for that to decide is compared in float64.
        """
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wide = queries.astype(np.float32)
        error = self._float32_error(wide)
        most, least = (
            torch.from_numpy(bound.astype(np.float32)[:, None]).to(device) for bound in (similarities + error, similarities - error)
        )
        on_device = torch.from_numpy(wide).to(device)
        count = np.zeros(len(queries), np.int64)
        smaller_ids = np.searchsorted(self.ids, ids)  # how many ids of this shard come before
        step = max(1, min(_BLOCK, 2**26 // max(1, len(queries))))
        for start in range(0, len(self), step):
            products = on_device @ torch.tensor(np.asarray(self._vectors[start : start + step])).to(device).float().T
            count += (products > most).sum(dim=1).cpu().numpy()
            close_rows, close = (found.cpu().numpy() for found in torch.nonzero((products >= least) & (products <= most), as_tuple=True))
            for part in np.array_split(np.arange(len(close)), max(1, len(close) * queries.shape[1] // 2**22)):
                rows, positions = close_rows[part], close[part] + start
                exact = np.einsum("ij,ij->i", self._vectors[positions].astype(np.float64), queries[rows].astype(np.float64))
                is_before = (exact > similarities[rows]) | ((exact == similarities[rows]) & (positions < smaller_ids[rows]))
                count += np.bincount(rows[is_before], minlength=len(queries))
        return count

    def _similarities(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Of each query to the texts at its positions, float64 [queries, positions]; -inf where a position is negative."""
        found = np.empty(positions.shape)
        step = max(1, 2**22 // max(1, positions.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            vectors = self._vectors[positions[part]].astype(np.float64)
            found[part] = np.matmul(vectors, queries[part].astype(np.float64)[:, :, None])[:, :, 0]
        found[positions < 0] = -np.inf
        return found

    def _float32_error(self, queries: np.ndarray) -> np.ndarray:
        """By how much a product with a normalised vector can be wrong in float32: 2^-24 for each term, and as much to be sure."""
        return queries.shape[1] * 2.0**-23 * np.linalg.norm(queries, axis=1)

    def _search_in_float64(self, queries: np.ndarray, k: int, at_least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions and similarities of the k most similar texts, of which all have a similarity of ``at_least``."""
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        for start, block in self._in_float64(queries):
            for query in np.flatnonzero((block >= at_least[:, None]).any(axis=1)):
                near = np.flatnonzero(block[query] >= at_least[query])
                best = near[np.lexsort((near, -block[query, near]))[:k]]
                found[query].append((best + start, block[query, best]))
        positions, similarities = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        for query, parts in enumerate(found):
            all_positions = np.concatenate([part for part, _ in parts])
            all_similarities = np.concatenate([part for _, part in parts])
            order = np.lexsort((all_positions, -all_similarities))[:k]
            positions[query], similarities[query] = all_positions[order], all_similarities[order]
        return positions, similarities

    def _in_float64(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """All similarities, exact: (position of the first text, float64 [queries, texts of the block])."""
        wide = queries.astype(np.float64)
        block = max(1, min(_BLOCK, 2**24 // max(1, len(queries))))
        for start in range(0, len(self), block):
            yield start, wide @ self._vectors[start : start + block].astype(np.float64).T


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest inner products of each query in float32, in descending order, and their positions: both [queries, k].

    ``queries``: float32 [queries, dimensions]; ``vectors``: float16 [texts, dimensions]. On the GPU when there is one, else faiss.
    """
    import faiss
    import torch

    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    on_gpu = torch.from_numpy(queries).cuda() if torch.cuda.is_available() else None
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK])
        best = min(k, len(block))
        if on_gpu is not None:
            products = on_gpu @ torch.from_numpy(block).cuda().float().T
            similarities, positions = (found.cpu().numpy() for found in products.topk(best))
        else:
            similarities, positions = faiss.knn(queries, block.astype(np.float32), best, metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(similarities, positions + start)
    heap.finalize()
    return heap.D, heap.I


def _nearest_in_lists(lists: Any, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
    """As ``nearest`` in the ``nprobe`` lists closest to each query; position -1 where they hold fewer than k texts.

    List by list: the queries that look at one are scored together, by a matrix product. Products are small, so threads share the
    lists, and not the products.
    """
    import faiss
    from threadpoolctl import threadpool_limits

    if len(queries) * nprobe < lists.nlist:  # few lists are looked at by more than one query
        lists.nprobe = nprobe
        return lists.search(queries, k)
    _, looked_at = lists.quantizer.search(queries, nprobe)
    by_list = np.argsort(looked_at.ravel(), kind="stable")
    ends = np.searchsorted(looked_at.ravel()[by_list], np.arange(lists.nlist), side="right")
    asking = np.split(by_list // nprobe, ends[:-1])
    threads = usable_cpus()
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda first: _search_lists(lists, range(first, lists.nlist, threads), queries, asking, k), range(threads))
        heap = faiss.ResultHeap(len(queries), k, keep_max=True)
        for similarities, positions in parts:
            heap.add_result(similarities, positions)
    heap.finalize()
    return heap.D, heap.I


def _search_lists(lists: Any, numbers: Iterable[int], queries: np.ndarray, asking: Sequence[np.ndarray], k: int) -> Any:
    """What the queries that look at some lists (``asking``, for each list) find in them: similarities, positions."""
    import faiss
    from faiss.contrib.inspect_tools import get_invlist

    faiss.omp_set_num_threads(1)  # of this thread
    codec: Any = lists.pq if isinstance(lists, faiss.IndexIVFPQ) else lists.sq
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for number in numbers:
        positions, codes = get_invlist(lists.invlists, number)
        if len(positions) and len(asking[number]):
            heap.add_result_subset(asking[number], queries[asking[number]] @ codec.decode(codes).T, positions)
    heap.finalize()
    return heap.D, heap.I

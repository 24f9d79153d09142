"""Step 4 (paper 3.4): for each question, the n-1 most similar other texts that are not answers too.

    texts, annotations -> negatives (a row per question), clusters (a row per text), index (the texts' vectors and its shards)

Texts and questions are embedded in Ray actors. The index is cut into shards, each in an actor of its own; every block of questions
asks all of them. A guard leaves out what may answer the question as well (``retrieval.guard``).
"""

import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from aloftrag import artifacts, models, resumable, schemas, storage
from aloftrag.artifacts import Run
from aloftrag.engine import StartEngine, annotator
from aloftrag.errors import RunError
from aloftrag.retrieval import guard, ivf, near_duplicates, shards
from aloftrag.retrieval.actors import map_in_tasks
from aloftrag.retrieval.guard import Rules
from aloftrag.retrieval.index import Index
from aloftrag.retrieval.text_store import TextStore
from aloftrag.retrieval.vectors import embed, embedder_use, vectors_of
from aloftrag.retrieval.verify import verify

MAKES = "negatives"
BESIDE: tuple[str, ...] = ("clusters", "index")
NEEDS: tuple[str, ...] = ("texts", "annotations")
VERSION = 2

_QUESTIONS_AT_ONCE = 8192  # that are asked of all shards together
_SEARCHED_AT_ONCE = 4096  # texts whose copies are looked for, likewise
_DEEPEST = 64  # times as many texts as wanted are looked at before a question gets fewer negatives
_FOUND_AT_ONCE = 2**21  # texts, of all questions of a block together; their ids are a quarter of a gigabyte


def with_index(run: Run) -> Run:
    """The run with ``negatives.index: auto`` decided, from the number of its texts and questions."""
    if run.job.negatives.index != "auto":
        return run
    return run.with_settings("negatives", index=_index_kind(run)[0])


def _index_kind(run: Run) -> tuple[str, str]:
    questions = storage.scan(run.artifact("annotations")).select(pl.col("question").count()).collect().item()
    texts = artifacts.count_rows(run.artifact("texts"))
    asked = questions if run.job.negatives.near_duplicate_similarity is None else questions + texts  # texts are searched for their copies
    return ivf.kind(texts, asked, models.dimensions(run.job.models.embedder))


def settings(run: Run) -> dict[str, Any]:
    """Everything that can change the negatives, beside texts and annotations."""
    negatives, prompts = run.job.negatives, run.job.models.embedder_prompts
    asks = {
        "language": run.job.language,
        "models.llm": models.identity(run.job.models.llm, "llm"),
        "training.max_tokens": run.job.training.max_tokens,
        "engine.options": run.job.engine.options,
    }
    return {
        "models.embedder": models.identity(run.job.models.embedder, "embedder"),
        "models.embedder_prompts": prompts.model_dump() if prompts else None,
        "negatives": {**negatives.model_dump(mode="json", exclude={"require_self_retrieval"}), "contexts": run.job.contexts},
        **({"training.unanswerable (a further negative)": True} if run.job.may_be_absent else {}),
        **(asks if negatives.verify else {}),
    }


def make(run: Run, folder: Path, work: Path, start_engine: StartEngine | None = None) -> dict[str, Any]:
    """Write the ``negatives`` artifact and beside it ``clusters`` and ``index``; returns its counts."""
    job, texts, index = run.job, run.artifact("texts"), run.artifact("index")
    questions = _questions(run.artifact("annotations"), work / "questions")
    if not artifacts.parquet_files(questions):
        raise RunError("mine_negatives: no text has a question; see why in the annotations, or lower annotation.text_threshold")
    embed(run, texts, "text", index, work, columns=["text_id", "text"])
    shards.add(index, job.negatives.index)
    vectors = work / "question_vectors"
    embed(run, questions, "query", vectors, work)
    mined = work / "mined" if job.negatives.verify else folder
    with shards.alive(index) as ask_shards:
        sample = shards.read_sample(vectors, ivf.SAMPLE_QUESTIONS)
        found = shards.about(index) or _choose_nprobe(index, ask_shards, sample, run)
        searched = Index(ask_shards, found["nprobe"])
        duplicates = _write_clusters(run, searched, work)
        margin = _margin(searched, sample, duplicates, run)
        # One more where it may stand in for a text that is withheld.
        rules = Rules(job.contexts - 1 + job.may_be_absent, margin, duplicates)
        resumable.map_rows(
            source=vectors,
            id_column="question_id",
            transform=lambda rows: map_in_tasks(rows, functools.partial(_mine_block, index=searched, rules=rules)),
            destination=mined,
            schema=schemas.NEGATIVES,
            checkpoints=work / "mined-checkpoints",
        )
    kind, why = _index_kind(run)
    verified = verify(run, mined, folder, work, start_engine or annotator(run)) if job.negatives.verify else {}
    return {
        **_counts(folder, artifacts.count_rows(texts), job.contexts),
        **verified,
        "embedders": embedder_use(work),
        "relative_margin": margin,
        "near_duplicates": len(duplicates),
        "index": {**found, "why": why if kind == found["kind"] else f"as negatives.index says, though {why}"},
    }


def mine(index: Index, queries: np.ndarray, rows: pa.Table, rules: Rules) -> pa.Table:
    """``schemas.NEGATIVES`` for questions: the most similar texts that the guard lets pass.

    ``queries``: [questions, dimensions]; ``rows`` has question_id, text_id, question in the same order. What is skipped is replaced
    from further ranks. A question gets fewer negatives where there are no more texts, or none down to ``_DEEPEST`` times as many.
    """
    own = rows["text_id"].to_pylist()
    positive = index.similarity(queries, own)
    found = [_Mined()] * len(own)
    wanted = rules.negatives + 1
    depth = wanted if rules.margin is None and not rules.clusters else 2 * wanted
    pending = np.arange(len(own))
    while len(pending):
        for part in np.array_split(pending, math.ceil(len(pending) * depth / _FOUND_AT_ONCE)):
            ids, similarities = index.search(queries[part], depth)
            for place, row in enumerate(part.tolist()):
                exists = np.isfinite(similarities[place])
                found[row] = _mined(ids[place, exists], similarities[place, exists], own[row], positive[row], rules)
        if ids.shape[1] < depth or depth >= _DEEPEST * wanted:
            break
        pending = pending[[len(found[row].negative_ids) < rules.negatives for row in pending.tolist()]]
        depth = min(4 * depth, _DEEPEST * wanted)
    return pa.Table.from_pydict(
        {
            "question_id": rows["question_id"],
            "text_id": rows["text_id"],
            "question": rows["question"],
            "negative_ids": [mined.negative_ids for mined in found],
            "similarities": [mined.similarities for mined in found],
            "ranks": [mined.ranks for mined in found],
            "positive_similarity": positive,
            "positive_rank": _positive_ranks(index, queries, own, [mined.positive_rank for mined in found]),
            "skipped": [mined.skipped for mined in found],
            "also_positive": [[] for _ in own],
        },
        schema=schemas.NEGATIVES,
    )


@dataclass(frozen=True)
class _Mined:
    """What was found for a question among its nearest texts."""

    negative_ids: list[str] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    positive_rank: int = 0  # not among them


def _mined(ids: np.ndarray, similarities: np.ndarray, own: str, positive: float, rules: Rules) -> _Mined:
    choice = guard.choose(ids, similarities, own, positive, rules)
    (own_places,) = np.nonzero(ids == own)
    return _Mined(
        ids[choice.kept].tolist(),
        similarities[choice.kept].tolist(),
        [place + 1 for place in choice.kept],
        [
            {"text_id": str(ids[place]), "similarity": float(similarities[place]), "rank": place + 1, "reason": reason, "answers": None}
            for place, reason in choice.skipped
        ],
        int(own_places[0]) + 1 if len(own_places) else 0,
    )


def _positive_ranks(index: Index, queries: np.ndarray, own: list[str], found: list[int]) -> np.ndarray:
    """The rank of each question's own text: where it was found, or counted over all texts where it was not (0)."""
    ranks = np.array(found, np.int64)
    further = np.flatnonzero(ranks == 0)
    if len(further):
        ranks[further] = index.rank(queries[further], [own[row] for row in further])
    return ranks


def _mine_block(block: pa.Table, index: Index, rules: Rules) -> pa.Table:
    return mine(index, vectors_of(block), block, rules)


def _questions(annotations: Path, folder: Path) -> Path:
    """The annotated questions as a table of their own, in row groups of ``_QUESTIONS_AT_ONCE``: what step 4 maps over."""
    artifacts.fresh_folder(folder)
    waiting: list[pa.Table] = []
    numbers = itertools.count()

    def write(count: int) -> None:
        table = pa.concat_tables(waiting)
        artifacts.write_table(table.slice(0, count), folder / f"questions-{next(numbers):06d}.parquet", _QUESTIONS_AT_ONCE)
        waiting[:] = [table.slice(count)]

    for path in _by_ids(artifacts.parquet_files(annotations)):
        table = artifacts.read_file(path, ["question_id", "text_id", "question"])
        waiting.append(table.filter(pc.is_valid(table["question"])))
        if (count := sum(part.num_rows for part in waiting)) >= _QUESTIONS_AT_ONCE:
            write(count - count % _QUESTIONS_AT_ONCE)
    if count := sum(part.num_rows for part in waiting):
        write(count)
    return folder


def _by_ids(annotations: list[Path]) -> list[Path]:
    """Files in the order of their ids: they have random names, and the last digits of a vector depend on what is embedded beside it."""

    def least_id(path: Path) -> str:
        return str(pc.min(artifacts.read_file(path, ["question_id"])["question_id"]))

    with ThreadPoolExecutor() as readers:
        found = dict(zip(annotations, readers.map(least_id, annotations), strict=True))
    return sorted(annotations, key=found.__getitem__)


def _choose_nprobe(index: Path, ask_shards: shards.ShardActors, sample: pa.Table, run: Run) -> dict[str, Any]:
    """Kind of index, how many inverted lists to look at, and the recall measured; noted beside the shards."""
    if run.job.negatives.index == "exact":
        found = {"kind": "exact", "nprobe": None, "recall": 1.0}
    else:
        nprobe, recall = ivf.choose_nprobe(
            lambda nprobe: Index(ask_shards, nprobe),
            Index(ask_shards),
            vectors_of(sample),
            run.job.contexts,
            ivf.lists_for(artifacts.count_rows(index)),
        )
        found = {"kind": "ivf", "nprobe": nprobe, "recall": round(recall, 4)}
    shards.finish(index, **found)
    return found


def _margin(index: Index, sample: pa.Table, duplicates: dict[str, str], run: Run) -> float | None:
    """``negatives.relative_margin``, with ``auto`` picked from how similar the sample's positives and neighbours are.

    Near-duplicates are skipped anyway, and do not count.
    """
    margin = run.job.negatives.relative_margin
    if margin != "auto":
        return margin
    queries, own = vectors_of(sample), sample["text_id"].to_pylist()
    ids, similarities = index.search(queries, run.job.contexts)
    distinct = np.array(
        [np.isin(row, near_duplicates.distinct(row.tolist(), duplicates, text_id)) for row, text_id in zip(ids, own, strict=True)]
    )
    similarities = np.where(distinct, similarities, -np.inf)
    return guard.auto_margin(guard.gaps(ids, similarities, np.asarray(own), index.similarity(queries, own)))


def _write_clusters(run: Run, index: Index, work: Path) -> dict[str, str]:
    """Write the ``clusters`` artifact; returns the cluster of each text that has near-duplicates."""
    texts, similarity = run.artifact("texts"), run.job.negatives.near_duplicate_similarity
    found: dict[str, str] = {}
    if similarity is not None:
        copies = work / "copies"
        resumable.map_rows(
            source=run.artifact("index"),
            id_column="text_id",
            transform=lambda rows: map_in_tasks(
                rows, functools.partial(_copies_of_block, index=index, texts=texts, similarity=similarity), _SEARCHED_AT_ONCE
            ),
            destination=copies,
            checkpoints=work / "copies-checkpoints",
        )
        pairs = storage.scan(copies).explode("copies").drop_nulls().collect()
        found = near_duplicates.clusters(pairs.iter_rows())
    folder = artifacts.fresh_folder(run.artifact("clusters"))
    for path in artifacts.parquet_files(texts):
        ids = artifacts.read_file(path, ["text_id"])["text_id"].to_pylist()
        table = pa.table({"text_id": ids, "cluster_id": [found.get(text_id, text_id) for text_id in ids]}, schema=schemas.CLUSTERS)
        artifacts.write_table(table, folder / path.name)
    return found


def _copies_of_block(block: pa.Table, index: Index, texts: Path, similarity: float) -> pa.Table:
    ids, store = block["text_id"].to_pylist(), TextStore(texts)
    close_texts = near_duplicates.close_texts(index, ids, vectors_of(block), similarity)
    close = [(text_id, others) for text_id, others in zip(ids, close_texts, strict=True) if others]
    copies: dict[str, list[str]] = {}
    for start in range(0, len(close), artifacts.BLOCK_ROWS):
        part = dict(close[start : start + artifacts.BLOCK_ROWS])
        copies |= near_duplicates.copies(part, store.texts({*part}.union(*part.values())))
    copies = near_duplicates.spanning(copies)
    return pa.table({"text_id": block["text_id"], "copies": pa.array([copies.get(text_id, []) for text_id in ids], pa.list_(pa.string()))})


def _counts(folder: Path, texts: int, contexts: int) -> dict[str, Any]:
    rows = storage.scan(folder)
    found = rows.select(
        pl.len().alias("questions"),
        (pl.col("positive_rank") == 1).sum().alias("found_own_text_first"),
        (pl.col("positive_rank") <= contexts).sum().alias("found_own_text_among_contexts"),
        (pl.col("negative_ids").list.len() < contexts - 1).sum().alias("fewer_negatives"),
        pl.col("also_positive").list.len().sum().alias("also_positive"),
    ).collect()
    skipped = rows.select(pl.col("skipped").explode().struct.field("reason")).drop_nulls().group_by("reason").len().collect()
    return {"texts": texts, **found.row(0, named=True), "skipped": dict(sorted(skipped.iter_rows()))}

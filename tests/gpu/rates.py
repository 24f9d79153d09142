"""The rates that ``aloftrag plan`` assumes, beside those of this GPU: ``python -m tests.gpu.rates [PART]...``.

Training (``training.loop`` with the paper's settings: one chat a step, r 64), embedding and exact search, with models of the size that
``plan`` assumes: a 7B one of Qwen2.5's shape, an embedder of BGE-M3's. Their weights are random, which takes as long. Needs no Ray, no
engine and no network; 16 GB of disk for the weights.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, XLMRobertaConfig, XLMRobertaModel

from aloftrag.job import EmbedderPrompts
from aloftrag.models import local_folder
from aloftrag.rates import ASSUMED
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.shard import Shard
from tests.benchmarks import show
from tests.conftest import EMBEDDER, LLM
from tests.steps.training_rows import random_rows, trained, write_run

CHATS, SHORTEST, LONGEST = 40, 1500, 3000  # tokens of a chat with ten texts of 150 to 300
TEXTS, CHARACTERS = 20_000, 800
SEARCHED, QUERIES, DIMENSIONS = 1_000_000, 8192, 1024
WORDS = ("station", "northern", "coast", "measure", "the", "wind", "of", "a", "pump", "and", "harbour", "report", "in", "valve")


def language_model(folder: Path) -> Path:
    """Qwen2.5-7B's shape with SmolLM2's tokeniser."""
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
    )
    with torch.device("cuda"):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(local_folder(LLM, "llm")).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder


def training(folder: Path) -> list[dict[str, object]]:
    """Tokens a second."""
    rows = random_rows(CHATS, vocabulary=49_000, shortest=SHORTEST, longest=LONGEST)
    settings = {"batching": "auto", "validation": 0.0}
    steps = trained(write_run(folder / "training", language_model(folder / "llm"), rows, **settings))[5:]  # the first ones warm up
    tokens = sum(line["tokens"] for line in steps) / sum(line["seconds"] for line in steps)
    print(f"training: {steps[-1]['share_of_peak']} of the peak, {steps[-1]['memory_mb']:,} MB")
    return [{"a second": "tokens trained on", "assumed": ASSUMED.training, "measured": tokens}]


def embedder_model(folder: Path) -> Path:
    """BGE-M3's shape with MiniLM's tokeniser; pooled by the mean, as sentence-transformers does without being told."""
    config = XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=8194,
    )
    XLMRobertaModel(config).half().save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(local_folder(EMBEDDER, "embedder"), model_max_length=8192).save_pretrained(folder)
    return folder


def embedding(folder: Path) -> list[dict[str, object]]:
    """Characters a second."""
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(TEXTS):
        length = int(draw.uniform(0.5, 1.5) * CHARACTERS)
        texts.append(" ".join(draw.choice(WORDS, length // 4))[:length])
    embedder = Embedder(str(embedder_model(folder / "embedder")), EmbedderPrompts())
    embedder.embed(texts[:100], "text")
    start = time.perf_counter()
    embedder.embed(texts, "text")
    characters = sum(map(len, texts)) / (time.perf_counter() - start)
    return [{"a second": "characters embedded", "assumed": ASSUMED.embedding, "measured": characters}]


def searching(_: Path) -> list[dict[str, object]]:
    """Products added up a second, by a search alone and with what follows it in step 4: the rank of a question's own text."""
    random = np.random.default_rng(0)
    vectors = np.empty((SEARCHED, DIMENSIONS), np.float16)
    for start in range(0, SEARCHED, 100_000):
        part = random.standard_normal((100_000, DIMENSIONS), np.float32)
        vectors[start : start + 100_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    ids = np.array([f"{number:08d}".encode() for number in range(SEARCHED)])
    shard = Shard.of(ids, vectors)
    own = random.permutation(SEARCHED)[:QUERIES]
    near = vectors[own].astype(np.float32) + 0.03 * random.standard_normal((QUERIES, DIMENSIONS), np.float32)
    queries = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float16)
    similarities = shard.similarity(queries, ids[own])
    shard.search(queries[:64], 32)
    alone, both = [], []
    for _ in range(3):
        start = time.perf_counter()
        shard.search(queries, 32)
        alone.append(time.perf_counter() - start)
        shard.count_before(queries, similarities, ids[own])
        both.append(time.perf_counter() - start)
    products = SEARCHED * QUERIES * DIMENSIONS
    return [
        {"a second": what, "assumed": ASSUMED.searching, "measured": products / statistics.median(seconds)}
        for what, seconds in (("products of search and rank", both), ("products of search", alone))
    ]


PARTS = {"search": searching, "embedding": embedding, "training": training}


def main() -> None:
    """Measure the parts that are named, else all, and print."""
    parts = sys.argv[1:] or list(PARTS)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            rows += PARTS[part](Path(folder))
    show(f"What plan assumes, and {torch.cuda.get_device_name()}", rows)
    print(json.dumps({"device": torch.cuda.get_device_name(), **{str(row["a second"]): float(f"{row['measured']:.3g}") for row in rows}}))


if __name__ == "__main__":
    main()

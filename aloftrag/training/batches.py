"""Which rows make up which optimiser step, and how a step's rows are put into padded batches."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aloftrag.training.rows import NONE, TrainingRow

if TYPE_CHECKING:
    import torch

_STEPS_GROUPED = 50  # within so many steps rows are grouped by length


def steps_of_epoch(lengths: Sequence[int], rows_per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers per optimiser step: shuffled, then grouped by length within a window, then the steps shuffled again.

    Every row occurs in exactly one step; the last step may have fewer rows.
    """
    random_order = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    random_order.shuffle(order)
    window = rows_per_step * _STEPS_GROUPED
    steps = []
    for start in range(0, len(order), window):
        by_length = sorted(order[start : start + window], key=lambda row: lengths[row])
        steps += [by_length[first : first + rows_per_step] for first in range(0, len(by_length), rows_per_step)]
    random_order.shuffle(steps)
    return steps


def micro_batches(rows: Sequence[TrainingRow], max_tokens: int) -> list[list[TrainingRow]]:
    """Rows of one step in batches of similar length, each of at most ``max_tokens`` tokens with its padding."""
    batches: list[list[TrainingRow]] = []
    for row in sorted(rows, key=len):
        if batches and len(row) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@dataclass(frozen=True)
class Batch:
    """Padded rows: int64 tensors [rows, longest]."""

    token_ids: "torch.Tensor"
    targets: "torch.Tensor"
    attention_mask: "torch.Tensor"


def collate(rows: Sequence[TrainingRow], pad_id: int) -> Batch:
    """Rows padded on the right to the longest of them."""
    import torch

    shape = (len(rows), max(map(len, rows)))
    token_ids, targets, mask = np.full(shape, pad_id, np.int64), np.full(shape, NONE, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        token_ids[number, : len(row)] = row.token_ids
        targets[number, : len(row)] = row.targets
        mask[number, : len(row)] = 1
    return Batch(torch.from_numpy(token_ids), torch.from_numpy(targets), torch.from_numpy(mask))

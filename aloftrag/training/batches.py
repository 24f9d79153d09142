"""Which rows make up which optimiser step, which of them a worker takes, and how these are put into batches.

A step has the same rows however they are batched and whoever takes them, so that its loss is the same but for rounding.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from aloftrag.training.rows import NONE, TrainingRow
from aloftrag.training.worker import Worker

if TYPE_CHECKING:
    import torch

Batching = Literal["by-length", "packed"]
Lengths = Sequence[int] | np.ndarray  # in tokens, of all rows

_STEPS_GROUPED = 50  # within so many steps rows are grouped by length
_MOST_PADDING = 0.05  # of a batch by length


def steps_of_epoch(lengths: Lengths, rows_per_step: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Row numbers per optimiser step: shuffled, then grouped by length within a window, then the steps shuffled again.

    Every row occurs in exactly one step; one step may have fewer rows. An epoch is an array, since it may have many millions of rows.
    """
    lengths = np.asarray(lengths)
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    window = rows_per_step * _STEPS_GROUPED
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part[:] = part[np.argsort(lengths[part], kind="stable")]
    steps = np.full((math.ceil(len(order) / rows_per_step), rows_per_step), -1)
    steps.flat[: len(order)] = order
    for step in draw.permutation(steps):
        yield step[step >= 0].tolist()


def share(rows: Sequence[int], lengths: Lengths, worker: Worker) -> list[int]:
    """The rows of a step that a worker takes: as many as any other, or one fewer, with about as many tokens.

    The rows are dealt there and back, the longest first.
    """
    own = []
    for place, row in enumerate(sorted(rows, key=lambda row: lengths[row], reverse=True)):
        turn, seat = divmod(place, worker.count)
        if worker.rank == (seat if turn % 2 == 0 else worker.count - 1 - seat):
            own.append(row)
    return own


def batches(rows: Sequence[int], lengths: Lengths, max_tokens: int, batching: Batching) -> list[list[int]]:
    """Rows in batches that take up at most ``max_tokens`` tokens, their padding included; a longer row stands alone."""
    return _packed(rows, lengths, max_tokens) if batching == "packed" else _by_length(rows, lengths, max_tokens)


def _by_length(rows: Sequence[int], lengths: Lengths, max_tokens: int) -> list[list[int]]:
    """Batches of similar length: padded to the longest, each has at most ``_MOST_PADDING``."""
    found: list[list[int]] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: lengths[row]):
        padded = lengths[row] * (len(found[-1]) + 1) if found else 0
        if found and padded <= max_tokens and padded - tokens - lengths[row] <= _MOST_PADDING * padded:
            found[-1].append(row)
            tokens += lengths[row]
        else:
            found.append([row])
            tokens = lengths[row]
    return found


def _packed(rows: Sequence[int], lengths: Lengths, max_tokens: int) -> list[list[int]]:
    """Best fit: the longest row first, each into the sequence that it fills best."""
    found: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens left and number of each sequence, ascending
    for row in sorted(rows, key=lambda row: lengths[row], reverse=True):
        place = bisect.bisect_left(room, (lengths[row], -1))
        left, number = room.pop(place) if place < len(room) else (max_tokens, len(found))
        if number == len(found):
            found.append([])
        found[number].append(row)
        bisect.insort(room, (left - lengths[row], number))
    return found


@dataclass(frozen=True)
class Batch:
    """Rows as the model reads them: int64 tensors [sequences, tokens]."""

    token_ids: "torch.Tensor"
    targets: "torch.Tensor"
    attention_mask: "torch.Tensor | None"  # 1 for a token, 0 for padding; None where there is none
    position_ids: "torch.Tensor | None"  # from 0 in each row of a packed sequence, which keeps its rows apart; None elsewhere

    def on(self, device: "torch.device") -> "Batch":
        """This batch on a device."""
        mask, positions = (tensor if tensor is None else tensor.to(device) for tensor in (self.attention_mask, self.position_ids))
        return Batch(self.token_ids.to(device), self.targets.to(device), mask, positions)


def collate(rows: Sequence[TrainingRow], batching: Batching) -> Batch:
    """Rows one behind the other in one sequence (``packed``), or each in a sequence of its own, padded on the right."""
    return _pack(rows) if batching == "packed" else _pad(rows)


def _pad(rows: Sequence[TrainingRow]) -> Batch:
    import torch

    shape = (len(rows), max(map(len, rows)))
    token_ids, targets, mask = np.zeros(shape, np.int64), np.full(shape, NONE, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        token_ids[number, : len(row)] = row.token_ids
        targets[number, : len(row)] = row.targets
        mask[number, : len(row)] = 1
    # Without a mask attention is plainly causal, which is faster.
    attention_mask = None if mask.all() else torch.from_numpy(mask)
    return Batch(torch.from_numpy(token_ids), torch.from_numpy(targets), attention_mask, None)


def _pack(rows: Sequence[TrainingRow]) -> Batch:
    import torch

    token_ids = np.concatenate([np.asarray(row.token_ids, np.int64) for row in rows])
    targets = np.concatenate([np.asarray(row.targets, np.int64) for row in rows])
    position_ids = np.concatenate([np.arange(len(row)) for row in rows])
    return Batch(torch.from_numpy(token_ids)[None], torch.from_numpy(targets)[None], None, torch.from_numpy(position_ids)[None])

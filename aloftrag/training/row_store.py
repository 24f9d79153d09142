"""The tokenised chats of a run on disk: written once, mapped into memory by every training worker.

A collection's chats are more tokens than each worker could hold; a step needs a few of them, from anywhere.
"""

from pathlib import Path

import numpy as np

from aloftrag import artifacts, storage
from aloftrag.training.rows import ANSWER, CITATION, TrainingRow


class RowStore:
    """Rows in the order of their chat ids."""

    def __init__(self, folder: Path):
        self._ids = np.load(folder / "chat_ids.npy", mmap_mode="r")
        self._starts = np.load(folder / "starts.npy")
        self.lengths = np.load(folder / "lengths.npy")  # int64 [rows]
        self.target_tokens = np.load(folder / "target_tokens.npy")  # int64 [rows, 2]: of citations, of answers
        self._token_ids = _mapped(folder / "token_ids.bin", np.int32)
        self._targets = _mapped(folder / "targets.bin", np.int8)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> TrainingRow:
        tokens = slice(self._starts[number], self._starts[number] + self.lengths[number])
        return TrainingRow(str(self._ids[number]), self._token_ids[tokens], self._targets[tokens])


def open_or_write(chats: Path, split: str, folder: Path) -> RowStore:
    """The rows of one split of the ``chats`` artifact, in a folder of this machine's; the first process there writes them."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with storage.published(folder) as unfinished:
                write(chats, split, unfinished)
    return RowStore(folder)


def write(chats: Path, split: str, folder: Path) -> None:
    """Write the rows of one split of the ``chats`` artifact to ``folder``, a block at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    ids: list[str] = []
    lengths, target_tokens = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    with (folder / "token_ids.bin").open("wb") as token_file, (folder / "targets.bin").open("wb") as target_file:
        for path, group, _ in artifacts.row_groups(chats):
            table = storage.parquet(path).read_row_group(group, columns=["chat_id", "split", "token_ids", "targets"])
            table = table.filter(np.array(table["split"].to_pylist()) == split)
            if not table.num_rows:
                continue
            token_ids, targets = (table[name].combine_chunks() for name in ("token_ids", "targets"))
            token_ids.flatten().to_numpy().tofile(token_file)
            kinds = targets.flatten().to_numpy()
            kinds.tofile(target_file)
            ids += table["chat_id"].to_pylist()
            lengths.append(token_ids.value_lengths().to_numpy().astype(np.int64))
            starts = np.cumsum(lengths[-1]) - lengths[-1]
            target_tokens.append(np.stack([np.add.reduceat(kinds == kind, starts, dtype=np.int64) for kind in (CITATION, ANSWER)], axis=1))
    order, all_lengths = np.argsort(np.array(ids, str)), np.concatenate(lengths)
    np.save(folder / "chat_ids.npy", np.array(ids, str)[order])
    np.save(folder / "lengths.npy", all_lengths[order])
    np.save(folder / "starts.npy", (np.cumsum(all_lengths) - all_lengths)[order])
    np.save(folder / "target_tokens.npy", np.concatenate(target_tokens)[order])


def _mapped(path: Path, kind: type) -> np.ndarray:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)

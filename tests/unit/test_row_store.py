"""Tokenised chats on disk, as training reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloftrag import schemas
from aloftrag.training import row_store
from aloftrag.training.row_store import RowStore
from aloftrag.training.rows import ANSWER, CITATION, NONE


def chat(chat_id: str, split: str, token_ids: list[int], targets: list[int]) -> dict[str, Any]:
    empty: dict[str, Any] = {name: [] for name in ("question_ids", "text_ids", "context_ids", "messages", "positive_positions")}
    return {"chat_id": chat_id, "split": split, **empty, "token_ids": token_ids, "targets": targets}


CHATS = [
    chat("d", "train", [70_000, 2], [NONE, ANSWER]),
    chat("a", "validation", [9], [NONE]),
    chat("c", "train", [3, 4, 5, 6], [NONE, CITATION, CITATION, ANSWER]),
    chat("b", "train", [7], [NONE]),
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    folder = tmp_path / "chats"
    folder.mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(CHATS[2 * number :][:2], schema=schemas.CHATS), folder / f"{number}.parquet", row_group_size=1)
    return folder


def test_the_rows_of_a_split_come_in_the_order_of_their_ids(chats: Path, tmp_path: Path) -> None:
    row_store.write(chats, "train", tmp_path / "train")
    store = RowStore(tmp_path / "train")
    assert [(row.chat_id, list(row.token_ids), list(row.targets)) for row in (store[number] for number in range(len(store)))] == [
        ("b", [7], [NONE]),
        ("c", [3, 4, 5, 6], [NONE, CITATION, CITATION, ANSWER]),
        ("d", [70_000, 2], [NONE, ANSWER]),
    ]
    assert store.lengths.tolist() == [1, 4, 2]
    assert store.target_tokens.tolist() == [[0, 0], [2, 1], [0, 1]]


def test_a_split_without_a_row_is_empty(chats: Path, tmp_path: Path) -> None:
    row_store.write(chats, "held_out", tmp_path / "none")
    store = RowStore(tmp_path / "none")
    assert len(store) == 0
    assert store.target_tokens.sum(axis=0).tolist() == [0, 0]


def test_a_write_that_was_killed_is_begun_anew(chats: Path, tmp_path: Path) -> None:
    (tmp_path / ".train").mkdir()
    (tmp_path / ".train" / "token_ids.bin").write_bytes(b"half of a row")
    row_store.write(chats, "train", tmp_path / "train")
    assert np.array_equal(RowStore(tmp_path / "train")[0].token_ids, [7])

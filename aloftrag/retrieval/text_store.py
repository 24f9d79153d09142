"""Texts by id: read from the files of the ``texts`` artifact, which are sorted by ``text_id``."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from aloftrag import artifacts, schemas, storage


class TextStore:
    """Batch reads of texts by id; nothing is held but the names of the files."""

    def __init__(self, *folders: Path):
        files = [path for folder in folders for path in artifacts.parquet_files(folder)]
        self._dataset = storage.dataset(files, schemas.TEXTS)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of ``ids`` that are here."""
        return set(self._read(ids, ["text_id"])["text_id"].to_pylist())

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """The text of each id; raises ``KeyError`` for an id that is not there."""
        wanted = set(ids)
        table = self._read(wanted, ["text_id", "text"])
        found = dict(zip(table["text_id"].to_pylist(), table["text"].to_pylist(), strict=True))
        missing = wanted - found.keys()
        if missing:
            raise KeyError(f"no text with id {min(missing)}")
        return found

    def _read(self, ids: Iterable[str], columns: list[str]) -> pa.Table:
        # Row groups are sorted by id and keep their smallest and largest one, so few of them are read.
        wanted = pa.array(sorted(set(ids)), pa.string())
        return self._dataset.to_table(columns=columns, filter=pc.field("text_id").isin(wanted))

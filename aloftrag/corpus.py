"""Files of documents: which there are, what their rows are, how a document becomes texts, and how a text is known."""

import glob
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from aloftrag import storage
from aloftrag.errors import UsageError

TABLES = {".parquet", ".jsonl", ".csv"}
WHOLE_FILES = {".txt", ".md"}
_BATCH_ROWS = 10_000


def source_files(paths: list[str], key: str, kinds: set[str]) -> list[str]:
    """The files that paths and globs name, sorted; raises ``UsageError`` (naming ``key``) for none or one of another kind."""
    found: set[str] = set()
    for path in paths:
        # A name with brackets may be a file's own.
        matches = [path] if storage.at(path).is_file() else matching(path)
        if not matches:
            raise UsageError(f"{key}: no file matches {path!r}")
        found.update(matches)
    for name in sorted(found):
        if Path(name).suffix.lower() not in kinds:
            raise UsageError(f"{key}: {name}: expected {', '.join(sorted(kinds))}")
    return sorted(found)


def matching(pattern: str) -> list[str]:
    """The files that match a path or an address with wildcards."""
    if "://" in pattern:
        from aloftrag import object_store

        return object_store.matching(pattern)
    return [match for match in glob.glob(pattern, recursive=True) if Path(match).is_file()]


def check_columns(name: str, columns: list[str], key: str) -> None:
    """Raise ``UsageError`` when a table lacks a column; other files have none."""
    if Path(name).suffix.lower() not in TABLES:
        return
    try:
        found = table_columns(name)
    except (pl.exceptions.PolarsError, pa.ArrowException, ValueError) as error:
        raise UsageError(f"{key}: {name}: cannot be read as a table ({' '.join(str(error).split())[:200]})") from error
    missing = [column for column in columns if column not in found]
    if missing:
        raise UsageError(f"{key}: {name}: no column {missing[0]!r}; it has {', '.join(sorted(found))}")


def table_columns(name: str) -> list[str]:
    """The columns of a parquet, csv or jsonl table (of jsonl: the keys of its first line)."""
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        return storage.parquet(name).schema_arrow.names
    if suffix == ".csv":
        return pl.scan_csv(name, glob=False).collect_schema().names()
    with storage.at(name).open("rb") as file:
        objects = (_json_object(line) for line in file if line.strip())
        first = next((found for found in objects if found is not None), None)
    if first is None:
        raise ValueError("expected an object a line")
    return list(first)


def text_id(text: str) -> str:
    """The id of a text: 32 hex digits of BLAKE2b of its normalised form."""
    return hashlib.blake2b(normalised(text).encode(), digest_size=16).hexdigest()


def normalised(text: str) -> str:
    """A text as it is known and stored: NFC, trimmed."""
    return unicodedata.normalize("NFC", text).strip()


def read_rows(name: str, text_column: str) -> Iterator[str | None]:
    """The texts of one file, as they stand there; empty for one that is missing, None for one that cannot be decoded."""
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        for batch in storage.parquet(name).iter_batches(_BATCH_ROWS, columns=[text_column]):
            column = batch.column(0)
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column = column.cast(pa.large_binary())  # decoded row by row, so that a broken one does not stop the file
            yield from (_as_text(value) for value in column.to_pylist())
    elif suffix == ".csv":
        for batch in pl.scan_csv(name, infer_schema=False, encoding="utf8-lossy", glob=False).select(text_column).collect_batches():
            yield from (None if value and "\ufffd" in value else value or "" for value in batch[text_column])
    elif suffix == ".jsonl":
        with storage.at(name).open("rb") as file:
            for line in file:
                if line.strip():
                    yield _json_text(line, text_column)
    else:
        yield _decoded(storage.at(name).read_bytes())


def chunker(tokenizer: str | None, chunk_tokens: int | None) -> Callable[[str], list[str]]:
    """What cuts a document into texts of at most ``chunk_tokens`` tokens; without a number, a document is one text."""
    if not tokenizer or not chunk_tokens:
        return lambda text: [text]
    from semantic_text_splitter import TextSplitter
    from tokenizers import Tokenizer

    splitter = TextSplitter.from_huggingface_tokenizer(Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), chunk_tokens)
    return splitter.chunks


def _as_text(value: Any) -> str | None:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return _decoded(value)
    return value if isinstance(value, str) else None


def _json_object(line: bytes) -> dict[str, Any] | None:
    """The object in a line, None when there is none or it holds what is no text (half of a surrogate pair)."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _json_text(line: bytes, text_column: str) -> str | None:
    row = _json_object(line)
    return None if row is None else _as_text(row.get(text_column))


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None

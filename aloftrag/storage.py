"""Where documents and run folders are: a file system that all machines share, or an object store (``s3://``, ``gs://``).

A path in an object store behaves as a ``pathlib.Path`` (universal_pathlib over fsspec). What such a store lacks is made up for here:

- renames: a folder is ``published``; what makes it whole is written last
- appends, and files that are mapped into memory: they are made on this machine's own disk (``scratch``), or copied to it (``local``)

Credentials and the store's address are those of the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...).
"""

import errno
import hashlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from aloftrag.errors import RunError, UsageError

_WHOLE = "_whole"  # in a published folder of an object store


def at(name: str | Path) -> Path:
    """The path that a name stands for."""
    if "://" not in str(name):
        return Path(name)
    try:
        from aloftrag import object_store
    except ModuleNotFoundError as error:
        raise UsageError(f"{name}: object stores need a further package: pip install 'aloftrag[s3]', or aloftrag[gcs]") from error
    return cast(Path, object_store.path(str(name)))


def is_local(path: Path) -> bool:
    """Whether a path is in a file system of this machine, and not in an object store."""
    return isinstance(path, Path)


def version(path: Path) -> str | None:
    """What an object store says to tell a file from another content of the same name; None in a file system."""
    if is_local(path):
        return None
    return _version(_store(path).info(_key(path)))


def scan(folder: Path) -> pl.LazyFrame:
    """The tables of an artifact."""
    return pl.scan_parquet([str(path) for path in sorted(folder.glob("*.parquet"))], glob=False)


def parquet(path: str | Path) -> pq.ParquetFile:
    """A table file, opened."""
    found = at(path)
    return pq.ParquetFile(found if is_local(found) else found.open("rb"))


def dataset(files: Sequence[Path], schema: pa.Schema) -> Any:
    """Table files as a pyarrow dataset."""
    import pyarrow.dataset
    from pyarrow.fs import FileSystem

    if not files or is_local(files[0]):
        return pyarrow.dataset.dataset([str(path) for path in files], schema=schema)
    store, _ = FileSystem.from_uri(f"{str(files[0]).partition('://')[0]}://{files[0].parts[0].strip('/')}")
    return pyarrow.dataset.dataset([_key(path) for path in files], schema=schema, filesystem=store)


def make_folder(path: Path) -> None:
    """Make a folder with those above it; an object store has none."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    make_folder(path.parent)
    if not is_local(path):
        path.write_bytes(content)  # one request
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def write_table(table: pa.Table, path: Path, block_rows: int) -> None:
    """One Parquet file, in row groups of so many rows."""
    make_folder(path.parent)
    if is_local(path):
        pq.write_table(table, path, row_group_size=block_rows)
        return
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=block_rows)
    path.write_bytes(content.getvalue())


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there; raises ``OSError`` when an object store keeps some of it."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    store, key = _store(folder), _key(folder)
    if store.exists(key):
        store.rm(key, recursive=True)
        if left := store.find(key):  # what it refuses, s3fs does not tell
            raise OSError(errno.EACCES, f"the store did not remove {left[0]} and {len(left) - 1} others")


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    if is_local(path):
        path.unlink(missing_ok=True)
    else:
        _store(path).rm_file(_key(path))


def copy(source: Path, destination: Path) -> None:
    """Copy a file, where it can be as a hard link: files of artifacts are replaced, never changed in place."""
    make_folder(destination.parent)
    if not is_local(source):
        _store(source).copy(_key(source), _key(destination))
        return
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, destination)


def flush(folder: Path) -> None:
    """See to it that what was written into a folder of this machine outlives a loss of power."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def scratch(path: Path) -> Path:
    """Where this machine keeps what is written bit by bit: there, or for an object store in a folder of its own disk."""
    if is_local(path):
        return path
    return _on_this_machine() / hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()


def local(path: Path) -> Path:
    """A file or folder on this machine: itself, or a copy that is made once for each content."""
    if is_local(path):
        return path
    store, key = _store(path), _key(path)
    found = store.find(key, detail=True)
    about = [(name, info["size"], _version(info)) for name, info in sorted(found.items())]
    copied = _on_this_machine() / hashlib.blake2b(repr(about).encode(), digest_size=16).hexdigest() / path.name
    if not copied.exists():
        unfinished = copied.with_name(f".{uuid.uuid4().hex}")
        store.get(key, str(unfinished), recursive=True)
        try:
            unfinished.rename(copied)
        except OSError:  # another process was faster
            if not copied.exists():
                raise
            shutil.rmtree(unfinished)
    return copied


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder on this machine to write into; as the body ends it becomes ``folder``, of which a reader sees the whole or nothing.

    Of several that write the same, the first one that is done wins.
    """
    name = f"unfinished-{folder.name}-{uuid.uuid4().hex}"
    unfinished = folder.with_name(name) if is_local(folder) else _on_this_machine() / name
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if is_local(folder):
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        elif not is_whole(folder):
            upload(unfinished, folder)
            mark_whole(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def upload(source: Path, folder: Path) -> None:
    """Copy what is in a folder of this machine into one of an object store; it is not whole yet."""
    for file in source.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(source).as_posix()).write_bytes(file.read_bytes())


def mark_whole(folder: Path) -> None:
    """Say of an uploaded folder that all of it is there."""
    (folder / _WHOLE).write_bytes(b"")


def is_whole(folder: Path) -> bool:
    """Whether a published folder is there."""
    return folder.is_dir() if is_local(folder) else (folder / _WHOLE).is_file()


def _on_this_machine() -> Path:
    folder = Path(tempfile.gettempdir()) / f"aloftrag-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RunError(f"{folder} belongs to another user, who could read what is copied there: set TMPDIR to a folder of your own")
    folder.chmod(0o700)
    return folder


def _version(about: dict[str, Any]) -> str:
    """What a store says of one content of a file: ``ETag`` of S3, ``etag`` of Google's."""
    return str(about.get("ETag") or about.get("etag") or about["LastModified"])


def _store(path: Path) -> Any:
    return path.fs  # type: ignore[attr-defined]


def _key(path: Path) -> str:
    return str(path.path)  # type: ignore[attr-defined]

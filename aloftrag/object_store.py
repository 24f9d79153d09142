"""Paths in an object store, which say so when the store does not answer.

fsspec's own ``is_file`` is False and its ``glob`` empty after a time-out or a refusal, which would read as work that was never done, or
as documents that are not there.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import fsspec
from fsspec.utils import glob_translate
from upath import UPath
from upath.implementations.cloud import GCSPath, S3Path
from upath.registry import register_implementation


class _Outspoken(UPath):
    """What asks a store raises what the store says."""

    __slots__ = ()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        try:
            return bool(self.fs.info(self.path)["type"] == "file")
        except FileNotFoundError:
            return False

    def glob(self, pattern: str, **_: Any) -> Iterator["_Outspoken"]:
        folder = self.path.rstrip("/")
        for name in _below(self.fs, folder, pattern.split("/")):
            yield self.joinpath(name.removeprefix(folder).strip("/"))

    def rglob(self, pattern: str, **_: Any) -> Iterator["_Outspoken"]:
        """The files, and not the folders, that match."""
        folder = self.path.rstrip("/")
        for name in self.fs.find(folder):
            if fnmatchcase(name.rpartition("/")[2], pattern):
                yield self.joinpath(name.removeprefix(folder).strip("/"))


class _S3Path(_Outspoken, S3Path):
    __slots__ = ()


class _GCSPath(_Outspoken, GCSPath):
    __slots__ = ()


for _protocol, _class in (("s3", _S3Path), ("s3a", _S3Path), ("gs", _GCSPath), ("gcs", _GCSPath)):
    register_implementation(_protocol, _class, clobber=True)


def path(name: str) -> UPath:
    """The path of an address."""
    return UPath(name, use_listings_cache=False)  # other machines write there too


def matching(pattern: str) -> list[str]:
    """The files that match an address with wildcards."""
    store, key = fsspec.core.url_to_fs(pattern, use_listings_cache=False)
    fixed = re.split(r"[*?\[]", key, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(key)).match
    scheme = pattern.partition("://")[0]
    return [f"{scheme}://{found}" for found in store.find(fixed) if matches(found)]


def _below(store: Any, folder: str, patterns: list[str]) -> Iterator[str]:
    """What matches the patterns, one for each level, in ``folder``."""
    try:
        listed = store.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for found in listed:
        name = found["name"].rstrip("/")
        if name == folder or not fnmatchcase(name.rpartition("/")[2], patterns[0]):
            continue
        if len(patterns) == 1:
            yield name
        elif found["type"] == "directory":
            yield from _below(store, name, patterns[1:])

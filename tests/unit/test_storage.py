"""Files and folders in an object store behave as those of a file system do."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aloftrag import artifacts, claims, object_store, schemas, storage
from aloftrag.errors import RunError, storage_failures_explained
from aloftrag.job import Job
from aloftrag.retrieval.near_duplicates import clusters_of
from tests.object_store import BUCKET, environment_of, in_this_process, s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[Path]:
    with s3_server() as (environ, _), in_this_process(environ):
        yield storage.at(f"s3://{BUCKET}")


@pytest.fixture(params=["file system", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: Path) -> Path:
    """An empty folder in either."""
    return tmp_path if request.param == "file system" else bucket / tmp_path.name / request.node.name.replace("[", "-").replace("]", "")


def test_json_is_written_replaced_and_read(folder: Path) -> None:
    for value in ({"a": 1}, {"b": "ü"}):
        artifacts.write_json(folder / "x" / "y.json", value)
        assert artifacts.read_json(folder / "x" / "y.json") == value
    assert [path.name for path in (folder / "x").iterdir()] == ["y.json"]


def test_tables_are_written_scanned_and_cut_into_row_groups(folder: Path) -> None:
    for name in ("a", "b"):
        artifacts.write_table(pa.table({"id": [f"{name}{n}" for n in range(600)]}), folder / "t" / f"{name}.parquet")
    assert artifacts.count_rows(folder / "t") == 1200
    assert storage.scan(folder / "t").collect()["id"].n_unique() == 1200
    groups = artifacts.row_groups(folder / "t")
    assert [rows for *_, rows in groups] == [256, 256, 88] * 2
    path, group, _ = groups[-1]
    assert storage.parquet(path).read_row_group(group)["id"][-1].as_py() == "b599"
    found = storage.dataset(artifacts.parquet_files(folder / "t"), pa.schema({"id": pa.string()}))
    assert found.to_table(filter=pa.compute.field("id") == "a7").num_rows == 1


def test_a_folder_with_brackets_is_one_folder(tmp_path: Path) -> None:
    artifacts.write_table(pa.table({"id": ["a"]}), tmp_path / "runs [2024]" / "t.parquet")
    artifacts.write_table(pa.table({"id": ["b"]}), tmp_path / "runs 2" / "t.parquet")
    assert storage.scan(tmp_path / "runs [2024]").collect()["id"].to_list() == ["a"]


def test_tables_that_cannot_be_removed_are_not_built_upon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write_table(pa.table({"id": ["a"]}), tmp_path / "t" / "old.parquet")
    monkeypatch.setattr("shutil.rmtree", lambda folder, ignore_errors: None)  # as on NFS, where another machine has one open
    with pytest.raises(OSError, match=r"old\.parquet could not be removed"):
        artifacts.fresh_folder(tmp_path / "t")


def test_clusters_are_those_of_the_texts_that_are_asked_for(folder: Path) -> None:
    table = pa.table({"text_id": ["a", "b", "c"], "cluster_id": ["a", "a", "c"]}, schema=schemas.CLUSTERS)
    artifacts.write_table(table, folder / "clusters" / "0.parquet")
    settings = {"name": "test", "languages": ["en"], "corpus": {"paths": ["a.md"]}, "negatives": {"near_duplicate_similarity": 0.9}}
    assert clusters_of(Job.model_validate(settings), folder / "clusters", ["b", "c", "d"]) == {"b": "a", "c": "c"}


def test_a_folder_is_removed_with_all_that_is_in_it_and_nothing_else(folder: Path) -> None:
    for name in ("a/1", "a/b/2", "ab/3"):
        storage.write(folder / name, b"x")
    storage.remove(folder / "a")
    storage.remove(folder / "never there")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["3"]
    assert list(artifacts.fresh_folder(folder / "ab").glob("*")) == []


def test_a_published_folder_is_whole_or_not_there(folder: Path) -> None:
    with storage.published(folder / "made") as unfinished:
        (unfinished / "sub").mkdir()
        (unfinished / "sub" / "x.txt").write_text("x")
        assert storage.is_local(unfinished)
        assert not storage.is_whole(folder / "made")
    assert storage.is_whole(folder / "made")
    assert (storage.local(folder / "made") / "sub" / "x.txt").read_text() == "x"
    with pytest.raises(ZeroDivisionError), storage.published(folder / "other") as unfinished:
        (unfinished / "x.txt").write_text(str(1 / 0))
    assert not storage.is_whole(folder / "other")


def test_of_two_that_publish_the_same_folder_one_wins(folder: Path) -> None:
    with storage.published(folder / "made") as first, storage.published(folder / "made") as second:
        for unfinished, content in ((first, "first"), (second, "second")):
            (unfinished / "x.txt").write_text(content)
    assert storage.is_whole(folder / "made")
    assert (folder / "made" / "x.txt").read_text() == "second"  # which was done first


def test_a_local_copy_is_that_of_the_content_of_now(folder: Path) -> None:
    for content in ("one", "another"):
        storage.write(folder / "a" / "x.txt", content.encode())
        assert (storage.local(folder / "a") / "x.txt").read_text() == content
        assert storage.local(folder / "a" / "x.txt").read_text() == content


def test_an_artifact_is_linked_without_its_manifest(folder: Path) -> None:
    for name in ("x.parquet", "sub/y.parquet", artifacts.MANIFEST, ".hidden/z"):
        storage.write(folder / "made" / name, b"x")
    artifacts.link(folder / "made", folder / "other")
    storage.remove(folder / "made")
    with pytest.raises(FileNotFoundError, match="is being removed"):
        artifacts.link(folder / "made", folder / "another")
    assert sorted(path.name for path in (folder / "other").rglob("*") if path.is_file()) == ["x.parquet", "y.parquet"]


def test_one_process_works_in_a_folder(folder: Path) -> None:
    with claims.hold(folder / ".claims"):
        with pytest.raises(RunError, match="another process"), claims.hold(folder / ".claims"):
            pytest.fail("two work")
        assert claims.working(folder / ".claims") == 1
    with claims.hold(folder / ".claims"):
        pass


def test_addresses_with_wildcards_name_files(bucket: Path) -> None:
    for name in ("docs/a.md", "docs/sub/b.md", "docs/c.txt"):
        storage.write(bucket / name, b"x")
    assert object_store.matching(f"s3://{BUCKET}/docs/*.md") == [f"s3://{BUCKET}/docs/a.md"]
    assert sorted(object_store.matching(f"s3://{BUCKET}/docs/**/*.md")) == [f"s3://{BUCKET}/docs/a.md", f"s3://{BUCKET}/docs/sub/b.md"]
    before = storage.version(bucket / "docs/a.md")
    storage.write(bucket / "docs/a.md", b"y")
    assert storage.version(bucket / "docs/a.md") != before


class _Busy(http.server.BaseHTTPRequestHandler):
    """An object store that has no time for anybody."""

    def _answer(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=["refuses", "is busy"])
def away(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of an object store that answers nothing of use."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Busy)
    environ = {**environment_of(server.server_port), "AWS_MAX_ATTEMPTS": "1"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if request.param == "refuses":
        server.shutdown()
        server.server_close()
    with in_this_process(environ):
        yield storage.at(f"s3://{request.param.replace(' ', '-')}/folder")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: (folder / "x.json").is_file(),
        lambda folder: folder.is_dir(),
        lambda folder: list(folder.glob("*.json")),
        lambda folder: list((folder / "a").glob("*/*.json")),
        lambda folder: list(folder.rglob("*.json")),
        lambda folder: object_store.matching(f"{folder}/**/*.md"),
        lambda folder: storage.write(folder / "x.json", b"{}"),
        lambda folder: artifacts.write_table(pa.table({"a": [1]}), folder / "x.parquet"),
    ],
    ids=["file", "folder", "glob", "deep glob", "rglob", "matching", "write", "table"],
)
def test_a_store_that_does_not_answer_is_not_an_empty_one(away: Path, ask: Callable[[Path], Any]) -> None:
    with pytest.raises(RunError, match=r"the storage failed .* the same command goes on"), storage_failures_explained():
        ask(away)


def test_a_store_that_goes_away_takes_no_run_from_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.1)
    with s3_server() as (environ, server), in_this_process({**environ, "AWS_MAX_ATTEMPTS": "1"}):
        folder = storage.at(f"s3://{BUCKET}/run/.claims")
        with claims.hold(folder):
            server.kill()
            server.wait()
            time.sleep(2)  # some beats that reach nobody
            with pytest.raises(Exception, match="connect"):
                list(folder.glob("*.json"))


class _Stubborn(_Busy):
    """An object store in which files can be put and read, and nothing else: no bucket is made, and none is removed."""

    protocol_version = "HTTP/1.1"  # who puts a file asks first whether to
    files: dict[str, bytes] = {}  # noqa: RUF012

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        status, said = 403, b""
        if path.strip("/").count("/") > 0 and self.command in ("PUT", "GET", "HEAD"):
            status = 200 if self.command == "PUT" or path in self.files else 404
            if self.command == "PUT":
                self.files[path] = content
            else:
                said = self.files.get(path, b"")
        elif self.command == "GET" and "list-type=2" in query:
            names = "".join(f"<Contents><Key>{name.split('/', 2)[2]}</Key><Size>1</Size></Contents>" for name in self.files)
            status, said = 200, f"<ListBucketResult><KeyCount>{len(self.files)}</KeyCount>{names}</ListBucketResult>".encode()
        elif self.command == "POST" and "delete" in query:
            errors = "".join(f"<Error><Key>{name.split('/', 2)[2]}</Key><Code>AccessDenied</Code></Error>" for name in self.files)
            status, said = 200, f"<DeleteResult>{errors}</DeleteResult>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer


def test_a_store_that_makes_no_bucket_is_written_to_and_one_that_keeps_a_file_says_so() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stubborn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ = {**environment_of(server.server_port), "AWS_MAX_ATTEMPTS": "1", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    with in_this_process(environ):
        folder = storage.at("s3://stubborn/folder")
        storage.write(folder / "x.json", b"{}")
        assert (folder / "x.json").read_bytes() == b"{}"
        with pytest.raises(OSError, match=r"did not remove stubborn/folder/x\.json"):
            storage.remove(folder)
        with pytest.raises(OSError, match=r"Forbidden|denied|Denied"):
            storage.remove_file(folder / "x.json")
    server.shutdown()
    server.server_close()

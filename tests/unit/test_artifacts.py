import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloftrag import artifacts
from aloftrag.errors import RunError
from aloftrag.job import Corpus, Job

SETTINGS = {"annotate (version)": 1, "seed": 0, "models.llm": "a", "texts (fingerprint)": "00ff"}
SCHEMA = pa.schema([pa.field("text_id", pa.string()), pa.field("rating", pa.float64()), pa.field("ids", pa.list_(pa.string()))])


def test_a_fingerprint_is_32_hex_digits_that_know_values_and_not_their_order() -> None:
    found = artifacts.fingerprint(SETTINGS)
    assert len(found) == 32
    assert int(found, 16)
    assert artifacts.fingerprint(dict(reversed(SETTINGS.items()))) == found


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": None}, {"seed": "0"}, {"models.llm": "ä"}, {"more": 0}])
def test_any_other_setting_gives_another_fingerprint(change: dict) -> None:
    assert artifacts.fingerprint({**SETTINGS, **change}) != artifacts.fingerprint(SETTINGS)


def test_an_artifact_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    assert artifacts.is_finished(tmp_path, SETTINGS, "annotate") is False
    artifacts.finish(tmp_path, "annotate", SETTINGS, {"texts": 3}, seconds=1.26)
    assert artifacts.is_finished(tmp_path, SETTINGS, "annotate") is True
    found = artifacts.manifest(tmp_path)
    assert found
    assert (found["step"], found["settings"], found["counts"], found["seconds"]) == ("annotate", SETTINGS, {"texts": 3}, 1.3)
    assert "ray" in found["versions"]


def test_an_artifact_made_with_other_settings_stops_and_names_what_differs_and_what_to_do(tmp_path: Path) -> None:
    artifacts.finish(tmp_path, "annotate", SETTINGS, {}, 0)
    with pytest.raises(RunError) as caught:
        artifacts.is_finished(tmp_path, {**SETTINGS, "seed": 7, "new": True}, "annotate")
    error = str(caught.value)
    assert str(tmp_path) in error
    assert "seed was 0 and is now 7" in error
    assert "new was absent and is now True" in error
    assert "--redo annotate" in error
    assert "models.llm" not in error


def test_a_files_digest_knows_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    digest = artifacts.files_digest([one])
    assert digest == artifacts.files_digest([one]) != artifacts.files_digest([two])
    assert artifacts.files_digest([one], tmp_path) == artifacts.files_digest([Path(one)], tmp_path)
    one.write_bytes(b"abd")
    assert artifacts.files_digest([one]) != digest


def test_a_files_digest_does_not_know_where_the_folder_lies(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(b"abc")
    here, there = tmp_path / "here", tmp_path / "there"
    assert artifacts.files_digest([here / "file"], here) == artifacts.files_digest([there / "file"], there)


def test_json_is_written_and_read_back_with_its_folder_made(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a" / "b.json", {"é": [1, None]})
    assert artifacts.read_json(tmp_path / "a" / "b.json") == {"é": [1, None]}
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.json"]


def test_a_reader_of_json_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    artifacts.write_json(path, {"old": 1})
    seen = []

    def look_and_replace(unfinished: Path, target: Path) -> None:
        seen.append((json.loads(path.read_text()), json.loads(unfinished.read_text())))
        unfinished.rename(target)

    monkeypatch.setattr(Path, "replace", look_and_replace)
    artifacts.write_json(path, {"new": 2})
    assert seen == [({"old": 1}, {"new": 2})]
    assert artifacts.read_json(path) == {"new": 2}


def test_a_write_of_json_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    artifacts.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        artifacts.write_json(path, {"new": object()})

    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        artifacts.write_json(path, {"new": 2})
    assert artifacts.read_json(path) == {"old": 1}


def write(folder: Path, rows: list[dict], schema: pa.Schema) -> None:
    artifacts.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{len(list(folder.iterdir()))}.parquet")


def test_a_column_of_nulls_that_kept_its_type_holds_the_schema(tmp_path: Path) -> None:
    write(tmp_path, [{"text_id": "a", "rating": 8.0, "ids": ["b"]}], SCHEMA)
    write(tmp_path, [{"text_id": "b", "rating": None, "ids": None}], SCHEMA)
    artifacts.hold_schema(tmp_path, SCHEMA)
    assert artifacts.read_table(tmp_path, SCHEMA).schema == SCHEMA


@pytest.mark.parametrize("lost", [pa.field("rating", pa.null()), pa.field("rating", pa.int64()), pa.field("rating", pa.float32())])
def test_a_column_of_nulls_that_lost_its_type_does_not_hold_the_schema(tmp_path: Path, lost: pa.Field) -> None:
    write(tmp_path, [{"text_id": "a", "rating": 8.0, "ids": ["b"]}], SCHEMA)
    write(tmp_path, [{"text_id": "b", "rating": None, "ids": []}], SCHEMA.set(1, lost))
    with pytest.raises(AssertionError, match=rf"1\.parquet: rating is {lost.type}, not double"):
        artifacts.hold_schema(tmp_path, SCHEMA)


def test_a_table_is_written_in_row_groups_of_a_block(tmp_path: Path) -> None:
    rows = [{"text_id": str(number)} for number in range(2 * artifacts.BLOCK_ROWS + 1)]
    artifacts.write_table(pa.Table.from_pylist(rows), tmp_path / "deep" / "t.parquet")
    metadata = pq.ParquetFile(tmp_path / "deep" / "t.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [artifacts.BLOCK_ROWS] * 2 + [1]
    assert artifacts.count_rows(tmp_path / "deep") == len(rows)


def test_a_fresh_folder_is_empty(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "left over").write_text("x")
    assert list(artifacts.fresh_folder(tmp_path / "texts").iterdir()) == []


def test_a_run_lies_below_its_jobs_name_and_its_language(tmp_path: Path) -> None:
    job = Job(name="xquad", languages=["en", "de"], corpus=Corpus(paths=["{language}.md"]))
    run = artifacts.Run.of(job, "de", tmp_path)
    assert run.folder == tmp_path / "xquad" / "de"
    assert (run.job.language, run.job.corpus.paths) == ("de", ["de.md"])


def test_the_work_folder_is_named_by_step_and_fingerprint(tmp_path: Path) -> None:
    run = artifacts.Run(job=None, folder=tmp_path)  # type: ignore[arg-type]
    assert run.work("annotate", "a" * 32) != run.work("annotate", "b" * 32)
    assert run.work("annotate", "a" * 32) != run.work("load_texts", "a" * 32)
    assert run.artifact("texts") == tmp_path / "texts"

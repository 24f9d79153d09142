import re
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloftrag import corpus
from aloftrag.errors import UsageError

_spaces = st.text(" \t\n\r\u3000\xa0", max_size=4)


def rows(path: Path, content: bytes) -> list[str | None]:
    path.write_bytes(content)
    return list(corpus.read_rows(str(path), "text"))


@given(st.text())
def test_an_id_is_32_hex_digits(text: str) -> None:
    assert re.fullmatch("[0-9a-f]{32}", corpus.text_id(text))


@given(st.text(), _spaces, _spaces, st.sampled_from(["NFC", "NFD"]))
def test_spaces_around_a_text_and_how_its_accents_are_composed_do_not_change_its_id(text: str, before: str, after: str, form: str) -> None:
    other = before + unicodedata.normalize(form, text) + after
    assert corpus.text_id(other) == corpus.text_id(text)
    assert corpus.normalised(corpus.normalised(text)) == corpus.normalised(text)


@given(st.text(min_size=1), st.text(min_size=1))
def test_other_texts_have_other_ids(text: str, other: str) -> None:
    assert (corpus.text_id(text) == corpus.text_id(other)) == (corpus.normalised(text) == corpus.normalised(other))


def test_case_inner_spaces_and_look_alikes_make_another_text() -> None:
    texts = ["The mill", "the mill", "The  mill", "The mill.", "m2", "m²", "fi", "ﬁ"]
    assert len({corpus.text_id(text) for text in texts}) == len(texts)


def test_the_id_of_a_text_is_fixed_for_good() -> None:
    # A run that was begun before an update must know its texts after it: BLAKE2b of 16 bytes over "café" in UTF-8.
    assert corpus.text_id(" cafe\u0301\n") == "9883c13e4279980fe3f262ea93047f84"


def test_the_rows_of_a_parquet_file_are_its_texts_in_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": [1, 2, 3], "text": ["one", None, "zwölf\n"]}), tmp_path / "t.parquet")
    assert [row or "" for row in corpus.read_rows(str(tmp_path / "t.parquet"), "text")] == ["one", "", "zwölf\n"]


def test_bytes_of_a_parquet_file_that_are_not_utf8_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"eins", b"\xff\xfe", None], pa.binary())}), tmp_path / "t.parquet")
    first, second, third = corpus.read_rows(str(tmp_path / "t.parquet"), "text")
    assert (first, second, third or "") == ("eins", None, "")


def test_numbers_of_a_parquet_file_are_no_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "t.parquet")
    assert list(corpus.read_rows(str(tmp_path / "t.parquet"), "text")) == [None, None]


def test_another_column_can_hold_the_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["no"], "body": ["yes"]}), tmp_path / "t.parquet")
    assert list(corpus.read_rows(str(tmp_path / "t.parquet"), "body")) == ["yes"]


def test_a_line_of_jsonl_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    lines = ['{"text": "eins"}', "\n", '{"text": "zwölf\\n", "x": 1}', "{broken", '["text"]', '{"text": 5}', '{"text": "last"}']
    content = "\n".join(lines).encode() + b'\n{"text": "\xff\xfe"}\n{"text": "\xc3\xa9"}'
    assert rows(tmp_path / "t.jsonl", content) == ["eins", "zwölf\n", None, None, None, "last", None, "é"]


def test_a_line_of_jsonl_with_null_or_without_the_key_has_no_text(tmp_path: Path) -> None:
    assert [row or "" for row in rows(tmp_path / "t.jsonl", b'{"text": null}\n{"other": "x"}\n{"text": ""}\n')] == ["", "", ""]


def test_the_cells_of_a_csv_file_are_its_texts(tmp_path: Path) -> None:
    content = 'id,text\n1,eins\n2,"zwei, ""drei""\nvier"\n3,\n4,007\n5,zwölf\n'.encode()
    assert [row or "" for row in rows(tmp_path / "t.csv", content)] == ["eins", 'zwei, "drei"\nvier', "", "007", "zwölf"]


def test_a_name_with_brackets_is_that_of_one_file(tmp_path: Path) -> None:
    for name, content in (("t [1].csv", b"text\neins\n"), ("t 1.csv", b"text\nzwei\n")):
        (tmp_path / name).write_bytes(content)
    corpus.check_columns(str(tmp_path / "t [1].csv"), ["text"], "corpus.paths")
    assert list(corpus.read_rows(str(tmp_path / "t [1].csv"), "text")) == ["eins"]


@pytest.mark.parametrize("name", ["t.txt", "t.md", "T.MD"])
def test_a_text_file_is_one_text(tmp_path: Path, name: str) -> None:
    assert rows(tmp_path / name, "# Müller\n\nzwei\n".encode()) == ["# Müller\n\nzwei\n"]
    assert rows(tmp_path / name, b"\xef\xbb\xbfeins") == ["eins"]
    assert rows(tmp_path / name, b"") == [""]
    assert rows(tmp_path / name, "Müller".encode("latin-1")) == [None]


def test_files_are_found_once_each_and_sorted(tmp_path: Path) -> None:
    for name in ("b.md", "a.md", "c.txt", "deep/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = corpus.source_files(
        [f"{tmp_path}/b.md", f"{tmp_path}/*.md", f"{tmp_path}/**/*.md", f"{tmp_path}/c.txt"], "corpus.paths", {".md", ".txt"}
    )
    assert [Path(file).relative_to(tmp_path).as_posix() for file in found] == ["a.md", "b.md", "c.txt", "deep/d.md"]


def test_a_path_that_names_no_file_is_an_error_that_names_key_and_path(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (f"{tmp_path}/*.txt", f"{tmp_path}/none.md", f"{tmp_path}/folder"):
        with pytest.raises(UsageError, match=rf"^corpus\.paths: no file matches '{re.escape(path)}'$"):
            corpus.source_files([f"{tmp_path}/a.md", path], "corpus.paths", {".md"})


def test_a_file_of_another_kind_is_an_error_that_names_it_and_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UsageError, match=r"^evaluation\.gold: .*/a\.pdf: expected \.csv, \.jsonl$"):
        corpus.source_files([f"{tmp_path}/*"], "evaluation.gold", {".jsonl", ".csv"})


@pytest.mark.parametrize(("name", "content"), [("t.csv", b"id,body\n1,x\n"), ("t.jsonl", b'\n{"id": 1, "body": "x"}\n')])
def test_a_table_without_the_column_is_an_error_that_says_which_it_has(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    corpus.check_columns(str(tmp_path / name), ["body"], "corpus.paths")
    with pytest.raises(UsageError, match=rf"^corpus\.paths: .*/{name}: no column 'text'; it has body, id$"):
        corpus.check_columns(str(tmp_path / name), ["id", "text"], "corpus.paths")


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.csv"])
def test_a_table_that_is_none_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"^corpus\.paths: .*/{name}: cannot be read as a table \(.*\)$"):
        corpus.check_columns(str(tmp_path / name), ["text"], "corpus.paths")


def test_a_text_file_has_no_columns_to_lack(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    corpus.check_columns(str(tmp_path / "a.md"), ["text"], "corpus.paths")


def test_without_a_number_of_tokens_a_document_is_one_text() -> None:
    assert corpus.chunker(None, None)("one. two.") == ["one. two."]

"""Step 0 on small files of each kind."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aloftrag.errors import RunError
from aloftrag.steps import load_texts

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def load(new_run: Any, work: Path) -> Any:
    """``load(corpus, ...)`` makes ``texts`` and returns the counts and the rows, in the order of the files' names."""

    def make(corpus: dict[str, Any], language: str = "en", **sections: Any) -> tuple[dict[str, Any], pl.DataFrame]:
        run = new_run(language, corpus=corpus, **sections)
        counts = load_texts.make(run, run.artifact("texts"), work)
        return counts, pl.read_parquet(run.artifact("texts") / "*.parquet")

    return make


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_copies_are_merged_counted_and_named_after_the_first_file(load: Any, tmp_path: Path) -> None:
    nfc, nfd = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    late = jsonl(tmp_path / "b.jsonl", f"  The {nfd} is shut.\n", "The mill is open.", f"The {nfc} is shut.")
    first = jsonl(tmp_path / "a.jsonl", f"The {nfc} is shut. ", "The Mill is open.")

    counts, texts = load({"paths": [late, first]})

    found = {row["text"]: (row["source"], row["copies"]) for row in texts.to_dicts()}
    assert found == {f"The {nfc} is shut.": (first, 3), "The mill is open.": (late, 1), "The Mill is open.": (first, 1)}
    assert counts == {"files": 2, "read": 5, "empty": 0, "undecodable": 0, "texts": 3, "copies_merged": 2, "characters": 3 * 17}


def test_ids_are_the_contracts_and_sort_the_rows(load: Any, tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")

    _, texts = load({"paths": [jsonl(tmp_path / "a.jsonl", "\tAda\n", decomposed)]})

    assert dict(texts.select("text", "text_id").rows()) == {"Ada": ADA, "é": E_ACUTE}
    assert texts["text_id"].to_list() == sorted([ADA, E_ACUTE])


# printf 'Ada' | b2sum -l 128, and the same of the two bytes c3 a9
ADA = "4522719c829031ba33df0718ce66bc8e"
E_ACUTE = "d4b1b0202b21bb84e60a3d272ecab0db"


def test_every_kind_of_file_is_read(load: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfFrom a text file,\non two lines.\n")  # with a byte order mark
    (tmp_path / "b.md").write_text("# From a page\n\nWith a heading.", encoding="utf-8")
    (tmp_path / "c.csv").write_text('n,body\n1,"From a sheet, with ""marks"""\n007,12\n', encoding="utf-8")
    (tmp_path / "d.jsonl").write_text('{"body": "From lines", "n": 1}\n\n{"body": "ελληνικά"}\n', encoding="utf-8")
    pl.DataFrame({"body": ["From columns", "もう一つ"], "n": [1, 2]}).write_parquet(tmp_path / "e.parquet")

    counts, texts = load({"paths": [str(tmp_path / "[a-e].*")], "text_column": "body"})

    assert {(Path(row["source"]).name, row["text"]) for row in texts.to_dicts()} == {
        ("a.txt", "From a text file,\non two lines."),
        ("b.md", "# From a page\n\nWith a heading."),
        ("c.csv", 'From a sheet, with "marks"'),
        ("c.csv", "12"),
        ("d.jsonl", "From lines"),
        ("d.jsonl", "ελληνικά"),
        ("e.parquet", "From columns"),
        ("e.parquet", "もう一つ"),
    }
    assert counts["files"] == 5


def test_rows_without_a_text_are_left_out_and_counted(load: Any, tmp_path: Path) -> None:
    lines = [
        b'{"text": "One text."}',
        b'{"text": ""}',  # empty
        b'{"text": " \\n "}',  # empty
        b'{"text": "... --- ..."}',  # nothing to read: empty
        b'{"text": null}',  # empty
        b'{"title": "no text"}',  # empty
        b'{"text": "cut off',  # undecodable
        b'{"text": "\xff\xfe"}',  # undecodable
        b'{"text": 12}',  # not a text: undecodable
        b'["no object"]',  # undecodable
        b'{"text": "half a pair: \\ud800"}',  # undecodable
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 in Latin-1")  # undecodable
    (tmp_path / "c.md").write_bytes(b"\n")  # empty
    pl.DataFrame({"text": ["Another text.", None, ""]}).write_parquet(tmp_path / "d.parquet")  # two empty
    (tmp_path / "e.csv").write_bytes(b"text,n\ncaf\xe9 in Latin-1,1\n,2\nA third text.,3\n")  # undecodable, empty

    counts, texts = load({"paths": [str(tmp_path / "[a-e].*")]})

    assert sorted(texts["text"]) == ["A third text.", "Another text.", "One text."]
    assert counts == {"files": 5, "read": 3, "empty": 9, "undecodable": 7, "texts": 3, "copies_merged": 0, "characters": 13 + 13 + 9}


def test_the_language_stands_in_the_path(load: Any, tmp_path: Path) -> None:
    jsonl(tmp_path / "texts.en.jsonl", "An English text.", "Another one.")
    jsonl(tmp_path / "texts.de.jsonl", "Ein deutscher Text.", "Noch einer.")

    _, texts = load({"paths": [str(tmp_path / "texts.{language}.jsonl")]}, language="de", languages=["en", "de"])

    assert sorted(texts["text"]) == ["Ein deutscher Text.", "Noch einer."]


def test_a_document_is_cut_into_texts_of_so_many_tokens_and_loses_only_whitespace(load: Any, tmp_path: Path, smollm2: Path) -> None:
    from transformers import AutoTokenizer

    document = "\n\n".join(
        [
            "# Heading one",
            " ".join(f"Sentence {n} tells that gate {n} opens at {n}:30." for n in range(12)),
            "".join(f"第{n}号门在{n}点开。" for n in range(40)),  # no spaces to cut at
            "x".join(str(n) for n in range(300, 360)),  # one long word
            "  Café \t number  seventy 🚪🚪 <|im_end|> ends it.  ",
        ]
    )
    short = "A short page that stays whole."
    (tmp_path / "long.md").write_text(document, encoding="utf-8")
    (tmp_path / "short.md").write_text(short, encoding="utf-8")

    counts, texts = load({"paths": [str(tmp_path / "*.md")], "chunk_tokens": 24})

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    lengths = [len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) for text in texts["text"]]
    assert max(lengths) <= 24
    assert short in texts["text"].to_list()
    chunks = texts.filter(pl.col("source").str.ends_with("long.md"))["text"].to_list()
    assert len(chunks) > 10
    in_order = sorted(chunks, key=document.index)  # also: every chunk stands in the document as it is
    assert "".join("".join(in_order).split()) == "".join(document.split())
    assert counts["read"] == counts["texts"] == len(chunks) + 1


def test_the_same_texts_however_the_work_is_cut(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_run: Any) -> None:
    for number in range(6):
        jsonl(tmp_path / f"{number}.jsonl", *(f"Text {n} is here." for n in range(number, number + 8)))
    corpus = {"paths": [str(tmp_path / "*.jsonl")]}
    counts, whole = load(corpus)

    monkeypatch.setattr(load_texts, "_GROUP_BYTES", 1)  # a task per file
    monkeypatch.setattr(load_texts, "_PREFIX_BYTES", 200)  # a file per digit of the ids
    counts_of_parts, parts = load(corpus)

    assert len(list(new_run(corpus=corpus).artifact("texts").glob("*.parquet"))) > 5
    assert counts_of_parts == counts
    assert parts.equals(whole)  # the row order too: files and rows are sorted by id
    assert whole["copies"].sum() == 48
    assert whole.filter(pl.col("text") == "Text 5 is here.")["copies"].item() == 6


def test_a_corpus_without_two_texts_is_an_error_that_says_why(load: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"corpus\.paths: no usable text in 1 files \(2 empty\)"):
        load({"paths": [jsonl(tmp_path / "a.jsonl", "", "...")]})

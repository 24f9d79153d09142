"""The page of a run that was made by hand."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aloftrag import artifacts, report, schemas
from aloftrag.errors import RunError
from aloftrag.report import data
from tests.steps import finished_run, tables


class Page(HTMLParser):
    """Its text, its tags, and what they refer to."""

    def __init__(self, source: str):
        super().__init__()
        self.text, self.tags, self.links, self._open = "", [], [], []
        self.feed(source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self._open[-1:] != ["style"] else ""


@pytest.fixture
def page(tmp_path: Path) -> Any:
    """``page(language, questions_from)``: the page of such a run."""

    def make(language: str = "en", questions_from: str = "gold") -> Page:
        run = finished_run.write(tmp_path / questions_from, language, questions_from)
        report.write(run)
        return Page((run.folder / report.PAGE).read_text(encoding="utf-8"))

    return make


def test_the_verdict_comes_first_and_nothing_is_fetched_or_run(page: Any) -> None:
    found = page()
    assert found.links == []
    assert "script" not in found.tags
    beginning = found.text[found.text.index("by-hand, English") :]
    assert beginning.split()[2] == "hold"
    assert len(re.findall(r"\bsvg\b", " ".join(found.tags))) == 4
    for heading in ("Base against adapter", "From documents to training", "Negatives", "3 questions side by side", "Settings"):
        assert heading in found.text


def test_what_documents_and_models_say_is_shown_as_it_is_and_never_markup(page: Any) -> None:
    found = page()
    assert "The mill <script>alert('x')</script> & its <b>wheel</b> were built by Ada." in found.text
    assert "I <i>cannot</i>." in found.text
    assert "no form <here>" in found.text
    assert {"b", "i"}.isdisjoint(found.tags)


def test_questions_side_by_side_show_gains_and_losses_and_who_cites_what(page: Any) -> None:
    text = " ".join(page().text.split())
    assert text.index("Citation wrong → right: Who built the mill?") < text.index("Citation right → wrong: When does the ferry leave?")
    assert "1, the right one, cited by adapter" in text
    assert "2, the right one, cited by base" in text
    assert "(reply not usable)" in text


def test_reasons_are_counted_with_examples(page: Any) -> None:
    text = " ".join(page().text.split())
    assert "does not find its own text first: 1 When does the ferry leave? at dawn" in text
    assert "no usable question: 1 The owl nests in the hollow oak. (no question and answer in the reply: I <i>cannot</i>.)" in text


@pytest.mark.parametrize("language", ["ar", "ja"])
def test_every_script_is_kept(page: Any, language: str) -> None:
    text = page(language).text
    for words in finished_run.WORDS[language]:
        assert all(part in text for part in words[:2])


def test_generated_questions_are_told_apart_from_gold(page: Any) -> None:
    assert "cannot say" not in page().text
    assert "cannot say" in page(questions_from="held_out").text


def test_similarities_of_positives_and_negatives_are_counted_in_bins(tmp_path: Path) -> None:
    first = tables.negative("a-0", ["b", "c"]) | {"positive_similarity": 0.71, "similarities": [0.52, 0.61]}
    second = tables.negative("b-0", ["c"]) | {"positive_similarity": 0.74, "similarities": [0.64]}
    none = tables.negative("c-0", []) | {"positive_similarity": 0.5}
    folder = tables.write(tmp_path / "negatives", schemas.NEGATIVES, [first, second, none], files=2)
    shown = data.similarities(folder)
    assert [low for low, *_ in shown] == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7])
    assert [own for _, own, _ in shown] == pytest.approx([1 / 3, 0, 0, 0, 2 / 3])
    assert [other for *_, other in shown] == pytest.approx([1 / 3, 0, 2 / 3, 0, 0])


def test_each_text_has_one_rating(tmp_path: Path) -> None:
    rows = [tables.annotation("a-0", text_rating=9.0), tables.annotation("a-1", text_rating=9.0), tables.annotation("b-0", text_rating=2.0)]
    rows.append(tables.annotation("c-0", text_rating=None))
    shares = dict(data.ratings(tables.write(tmp_path / "annotations", schemas.ANNOTATIONS, rows, files=2)))
    assert (len(shares), shares[9], shares[2], sum(shares.values())) == (11, 0.5, 0.5, 1.0)
    nothing = tables.write(tmp_path / "none", schemas.ANNOTATIONS, [tables.annotation("c-0", text_rating=None)])
    assert data.ratings(nothing) == []


def test_the_loss_curve_is_the_mean_of_several_steps(tmp_path: Path) -> None:
    run = finished_run.write(tmp_path)
    found = data.losses(run.artifact("adapter"))
    assert [step for step, _ in found["training"]] == list(range(3, 301, 3))
    assert found["training"][0][1] == pytest.approx(sum(3 / (1 + step / 50) for step in (1, 2, 3)) / 3)
    assert found["validation"] == [(150, 1.4), (300, 0.8)]


def test_ten_questions_are_chosen_for_gains_and_losses(tmp_path: Path) -> None:
    import polars as pl

    run = finished_run.write(tmp_path)
    (question,) = tables.read(run.artifact("questions"), "question_id")[:1]
    (answer,) = tables.read(run.artifact("answers") / "base", "question_id")[:1]
    changes = {**{f"w{n}": 1 for n in range(9)}, **{f"l{n}": -1 for n in range(2)}, **{f"s{n}": 0 for n in range(20)}}
    tables.write(run.artifact("questions"), schemas.QUESTIONS, [{**question, "question_id": name} for name in changes])
    for variant in ("base", "adapter"):
        rows = [{**answer, "question_id": name, "variant": variant} for name in changes]
        tables.write(run.artifact("answers") / variant, schemas.ANSWERS, rows)
    exact = [("base", name, float(change < 0)) for name, change in changes.items()]
    exact += [("adapter", name, float(change > 0)) for name, change in changes.items()]
    pl.DataFrame(exact, schema=["variant", "question_id", "citation_exact"], orient="row").write_parquet(
        run.artifact("scores") / "scores.parquet"
    )
    chosen = [(row["base"]["question_id"], row["kind"]) for row in data.side_by_side(run)]
    kinds = [kind for _, kind in chosen]
    assert len(chosen) == len({name for name, _ in chosen}) == 10
    assert (kinds.count("wins"), kinds.count("losses"), kinds.count("others")) == (5, 2, 3)  # one loss was missing


def test_a_run_that_an_older_version_scored_is_one_line(tmp_path: Path) -> None:
    run = finished_run.write(tmp_path)
    scores = artifacts.read_json(run.folder / "scores.json")
    del scores["against_baselines"]
    artifacts.write_json(run.folder / "scores.json", scores)
    with pytest.raises(RunError, match="older version; run the job again with --redo answer_questions"):
        report.write(run)

"""Steps 1 to 3 with an engine that answers from a script: one text at a time in this process, and whole artifacts on Ray."""

import asyncio
import functools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloftrag import schemas
from aloftrag.engine import Completion, EngineDead, PromptRefused
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.errors import RunError
from aloftrag.steps import annotate
from tests.steps import tables
from tests.steps.scripts import GOOD_QUESTION, by_kind

TEXT = "The west gate opens at noon. The east gate stays shut. The north gate is red."


@pytest.fixture
def annotated(new_run: Any) -> Any:
    """``annotated(annotation, replies)``: the row of one text, and the calls that were made about it."""

    def ask(annotation: dict[str, Any], text: str = TEXT, **replies: Any) -> tuple[dict[str, Any], Counter[str]]:
        asked: list[str] = []
        engine = ScriptedEngine(by_kind(asked, **replies))
        row = asyncio.run(annotate.annotate_text(engine, {"text_id": "t", "text": text}, new_run(annotation=annotation).job))
        return row, Counter(asked)

    return ask


def test_a_good_text_gets_its_rating_question_and_answer(annotated: Any) -> None:
    row, asked = annotated({}, rate_text="08", write_qa=GOOD_QUESTION)
    assert (row["text_rating"], row["text_rating_reply"]) == (8.0, "08")
    (question,) = row["questions"]
    assert question == {
        "reply": GOOD_QUESTION,
        "question": "Which gate opens at noon?",
        "answer": "the west gate",
        "wrong_language": False,
        "refers_to_text": False,
        "copies_instruction": False,
    }
    assert asked == {"rate_text": 1, "write_qa": 1}


def test_a_text_rated_too_low_is_asked_no_question(annotated: Any) -> None:
    row, asked = annotated({"text_threshold": 8.0}, rate_text="07", write_qa=GOOD_QUESTION)
    assert row["text_rating"] == 7.0
    assert row["questions"] == []
    assert "error" not in row  # the text is poor, the model did not fail
    assert asked == {"rate_text": 1}


@pytest.mark.parametrize(("reply", "rating"), [("07", 7.0), ("no idea", None), (None, None)])
def test_without_stop_early_every_text_gets_its_question(reply: str | None, rating: float | None, annotated: Any) -> None:
    row, asked = annotated({"stop_early": False}, rate_text=reply, write_qa=GOOD_QUESTION)
    assert row["text_rating"] == rating
    assert row["questions"][0]["answer"] == "the west gate"
    assert asked == {"rate_text": 1, "write_qa": 1}


@pytest.mark.parametrize("reply", ["no idea", None])
def test_a_text_without_a_rating_stops_with_an_error(reply: str | None, annotated: Any) -> None:
    row, asked = annotated({}, rate_text=reply, write_qa=GOOD_QUESTION)
    assert (row["text_rating"], row["questions"]) == (None, [])
    assert "no rating" in row["error"]
    assert asked == {"rate_text": 1}


def test_question_and_answer_are_rated_only_when_that_is_asked_for(annotated: Any) -> None:
    replies = {"rate_text": "10", "write_qa": GOOD_QUESTION, "rate_question": "09", "rate_answer": "so-so"}
    row, asked = annotated({"rate_qa": True}, **replies)
    (question,) = row["questions"]
    assert (question["question_rating"], question["question_rating_reply"]) == (9.0, "09")
    assert (question["answer_rating"], question["answer_rating_reply"]) == (None, "so-so")
    assert asked == {"rate_text": 1, "write_qa": 1, "rate_question": 1, "rate_answer": 1}

    _, asked = annotated({"rate_qa": False}, **replies)
    assert asked == {"rate_text": 1, "write_qa": 1}


def test_what_was_not_written_is_not_rated(annotated: Any) -> None:
    _, asked = annotated({"rate_qa": True}, rate_text="10", write_qa="I cannot.", rate_question="09", rate_answer="09")
    assert asked == {"rate_text": 1, "write_qa": 1}


@pytest.mark.parametrize(("reply", "error"), [(None, "cut at the token limit"), ("Which gate opens at noon?", "no question and answer")])
def test_a_reply_that_cannot_be_used_is_kept_with_an_error(reply: str | None, error: str, annotated: Any) -> None:
    row, _ = annotated({}, rate_text="10", write_qa=reply)
    (question,) = row["questions"]
    assert question["reply"] == (reply or "")
    assert error in question["error"]
    assert question.keys() == {"reply", "error"}


def test_what_stands_before_the_cut_is_not_taken_for_a_reply(new_run: Any) -> None:
    class CutEngine(ScriptedEngine):
        async def complete(self, prompt: Any) -> Completion:
            return Completion((await super().complete(prompt)).text, ended=False)

    engine = CutEngine(by_kind(rate_text="10", write_qa=GOOD_QUESTION))
    job = new_run(annotation={"stop_early": False}).job
    row = asyncio.run(annotate.annotate_text(engine, {"text_id": "t", "text": TEXT}, job))
    assert (row["text_rating"], row["text_rating_reply"]) == (None, "10")
    assert row["questions"] == [{"reply": GOOD_QUESTION, "error": "the reply was cut at the token limit"}]


def test_each_part_of_a_text_gets_a_question_and_a_repeated_one_becomes_an_error(annotated: Any) -> None:
    def write(asked_about: str) -> str:
        if "north gate is red" in asked_about.partition("### Part")[2]:
            return "What colour is the north gate?\n### Answer\nred"
        return "Which gate opens at noon?\n### Answer\n" + ("west" if "opens" in asked_about.partition("### Part")[2] else "the west gate")

    row, asked = annotated({"questions_per_text": 3}, rate_text="10", write_qa=write)

    assert asked == {"rate_text": 1, "write_qa": 3}
    first, second, third = row["questions"]
    assert (first["question"], first["answer"]) == ("Which gate opens at noon?", "west")
    assert second == {"reply": "Which gate opens at noon?\n### Answer\nthe west gate", "error": "repeats another question about this text"}
    assert third["answer"] == "red"


def test_a_repeat_is_known_in_spite_of_case_and_marks() -> None:
    questions = [{"question": q, "reply": q} for q in ("Who came?", "who  came", "Who left?", None, None)]
    kept = [question.get("question") for question in annotate.without_repeats(questions)]
    assert kept == ["Who came?", None, "Who left?", None, None]


def test_a_text_too_long_for_the_model_gets_an_error_of_its_own(annotated: Any) -> None:
    def refuse(user: str) -> str:
        raise PromptRefused.too_long(999, 16, 512)

    row, asked = annotated({}, rate_text=refuse, write_qa=GOOD_QUESTION)
    assert row["error"] == "text too long: 999 tokens and 16 for the reply, but the model takes 512"
    assert asked == {"rate_text": 1}

    row, _ = annotated({}, rate_text="10", write_qa=refuse)  # it could be rated, but not asked about
    assert row["text_rating"] == 10.0
    assert row["error"] == "text too long: 999 tokens and 16 for the reply, but the model takes 512"
    assert row["questions"] == []


# Whole artifacts, on Ray.

TEXTS = [{"text_id": f"{n:032x}", "text": f"Gate {n} opens. Gate {n} shuts.", "source": "by hand", "copies": 1} for n in range(14)]


def text_number(user: str) -> int:
    return int(user.partition("Gate ")[2].split()[0])


def mixed_replies() -> Any:
    """Of every four texts: two questions, rated too low, no rating, one question and one that is no question."""

    def rate(user: str) -> str:
        return ["09", "03", "nothing", "10"][text_number(user) % 4]

    def write(user: str) -> str:
        n, verb = text_number(user), user.partition("### Part")[2].split()[-1].strip('".')
        return "I cannot." if n % 4 == 3 and verb == "shuts" else f"When is it that gate {n} {verb}?\n### Answer\nat {n}"

    return by_kind(rate_text=rate, write_qa=write)


@pytest.fixture
def made(new_run: Any, tmp_path: Path, ray_session: None) -> Any:
    """``made(replies, annotation, files, group_rows)`` makes the artifact and returns its counts and folder."""

    def make(replies: Any, annotation: dict[str, Any], name: str = "one", **cut: int) -> tuple[dict[str, Any], Path]:
        run = new_run(name=name, annotation=annotation)
        tables.write(run.artifact("texts"), schemas.TEXTS, TEXTS, **cut)
        engine = functools.partial(ScriptedEngine, replies)
        return annotate.make(run, run.artifact("annotations"), tmp_path / f"work-{name}", engine), run.artifact("annotations")

    return make


def test_the_same_rows_whether_the_texts_lie_in_one_block_or_two_or_seven(made: Any) -> None:
    annotation = {"questions_per_text": 2, "max_failed": 1.0}
    made_from = [made(mixed_replies(), annotation, f"cut-{n}", **cut) for n, cut in enumerate(CUTS)]

    (counts, folder), *others = made_from
    rows = tables.read(folder, "question_id")
    for other_counts, other_folder in others:
        assert tables.read(other_folder, "question_id") == rows
        assert {**other_counts, "engines": None} == {**counts, "engines": None}

    # Texts 0, 4, 8, 12 have two questions; 3, 7, 11 one and an error; 1, 5, 9, 13 are poor; 2, 6, 10 have no rating.
    engines = counts.pop("engines")
    assert 0 < engines["busy"] <= 1
    assert engines["tokens"] > 100
    assert counts == {"texts": 14, "rated": 11, "texts_with_questions": 7, "failed": 3, "questions": 11}
    assert {row["text_id"] for row in rows} == {text["text_id"] for text in TEXTS}
    expected = [f"{n:032x}-{number}" for n in range(14) for number in range(2 if n % 4 in (0, 3) else 1)]
    assert [row["question_id"] for row in rows] == expected
    by_id = {row["question_id"]: row for row in rows}
    assert by_id[f"{4:032x}-1"]["question"] == "When is it that gate 4 shuts?"
    assert by_id[f"{4:032x}-1"]["text_rating"] == 9.0
    assert (by_id[f"{5:032x}-0"]["text_rating"], by_id[f"{5:032x}-0"]["question"], by_id[f"{5:032x}-0"]["error"]) == (3.0, None, None)
    assert "no rating in the reply 'nothing'" in by_id[f"{6:032x}-0"]["error"]
    assert (by_id[f"{7:032x}-1"]["question"], by_id[f"{7:032x}-1"]["reply"]) == (None, "I cannot.")


CUTS = [{"files": 1}, {"files": 2}, {"files": 1, "group_rows": 2}]


@pytest.mark.parametrize(("cut", "expected"), [({}, 1), ({"files": 2}, 2), ({"group_rows": 2}, 3)])
def test_no_more_engines_start_than_have_a_block_to_answer(
    cut: dict[str, int], expected: int, new_run: Any, tmp_path: Path, ray_session: None
) -> None:
    run, started = new_run(resources={"engine_replicas": 3}), tmp_path / "started"
    tables.write(run.artifact("texts"), schemas.TEXTS, TEXTS, **cut)
    started.mkdir()

    def start_engine() -> ScriptedEngine:
        (started / str(os.getpid())).touch()
        return ScriptedEngine(by_kind(rate_text="03"))

    counts = annotate.make(run, run.artifact("annotations"), tmp_path / "work", start_engine)
    assert counts["engines"]["count"] == expected
    assert 1 <= len(list(started.iterdir())) <= expected
    assert counts["rated"] == len(TEXTS)


def test_a_question_that_is_there_twice_stops_the_run(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    explode = annotate.explode_questions
    monkeypatch.setattr(annotate, "explode_questions", lambda block: pa.concat_tables([explode(block)] * 2))
    with pytest.raises(RunError, match=r"annotations: 28 rows with 14 ids of 14 texts, for 14 texts; run this step again with --redo"):
        made(by_kind(rate_text="09", write_qa=GOOD_QUESTION), {})


def test_columns_keep_their_types_when_every_reply_is_unusable(made: Any) -> None:
    counts, folder = made(by_kind(rate_text="???"), {"max_failed": 1.0}, files=2)
    engines = counts.pop("engines")
    assert 0 < engines["busy"] <= 1
    assert engines["tokens"] == 14  # one word about each
    assert counts == {"texts": 14, "rated": 0, "texts_with_questions": 0, "failed": 14, "questions": 0}
    for path in folder.glob("*.parquet"):
        assert pq.read_schema(path).remove_metadata().equals(schemas.ANNOTATIONS, check_metadata=False)
    rows = tables.read(folder, "question_id")
    assert [row["question_id"] for row in rows] == [f"{text['text_id']}-0" for text in TEXTS]
    assert {row["question"] for row in rows} == {None}
    assert {row["text_rating_reply"] for row in rows} == {"???"}


def test_more_failures_than_allowed_stop_the_run_with_three_examples(made: Any) -> None:
    with pytest.raises(RunError) as raised:
        made(by_kind(rate_text="10", write_qa="I cannot."), {"max_failed": 0.9})
    error = str(raised.value)
    assert "14 of 14 texts" in error
    assert "annotation.max_failed = 0.9" in error
    assert error.count("no question and answer in the reply ('I cannot.')") == 3
    assert sum(text["text_id"] in error for text in TEXTS) == 3
    assert "a higher max_failed" in error


class PoisonedEngine(ScriptedEngine):
    """An engine whose process dies when it is asked about a poisonous text; the others in flight are lost with it."""

    async def complete(self, prompt: Any) -> Completion:
        if "poison" in prompt.messages[1]["content"]:
            raise EngineDead("killed by what it was asked")
        await asyncio.sleep(0.2)
        return await super().complete(prompt)


def test_of_many_texts_in_flight_only_the_one_that_kills_the_engine_is_set_aside(new_run: Any, work: Path, ray_session: None) -> None:
    run = new_run(annotation={"text_threshold": 0})
    texts = {f"t{number}": f"Gate number {number} opens at noon." for number in range(32)} | {"t11": "This gate is poison."}
    tables.write(run.artifact("texts"), schemas.TEXTS, tables.text_rows(texts))
    replies = by_kind(rate_text="8", write_qa=GOOD_QUESTION)
    annotate.make(run, run.artifact("annotations"), work, start_engine=functools.partial(PoisonedEngine, replies))
    rows = pq.read_table(run.artifact("annotations")).to_pylist()
    assert len({row["text_id"] for row in rows}) == len(rows) == len(texts)
    assert [row["error"] for row in rows if row["error"]] == ["the engine died on it"]
    (poison,) = [row for row in rows if row["error"]]
    assert poison["text_id"] == "t11"


class QuietlyDyingEngine(ScriptedEngine):
    """An engine that dies once while it is asked, and what it was asked never comes back: neither answered nor failed."""

    def __init__(self, replies: Any, has_died: Path):
        super().__init__(replies)
        self._has_died = has_died

    async def complete(self, prompt: Any) -> Completion:
        if self.is_dead or not self._has_died.exists():
            self._has_died.touch()
            self.is_dead = True
            await asyncio.sleep(600)
        return await super().complete(prompt)


def test_what_a_dead_engine_never_answers_is_asked_of_another(new_run: Any, work: Path, ray_session: None) -> None:
    run = new_run(annotation={"text_threshold": 0})
    texts = {f"t{number}": f"Gate number {number} opens at noon." for number in range(8)}
    tables.write(run.artifact("texts"), schemas.TEXTS, tables.text_rows(texts))
    replies = by_kind(rate_text="8", write_qa=GOOD_QUESTION)
    annotate.make(run, run.artifact("annotations"), work, start_engine=functools.partial(QuietlyDyingEngine, replies, work / "has_died"))
    rows = pq.read_table(run.artifact("annotations")).to_pylist()
    assert sorted(row["text_id"] for row in rows) == sorted(texts)
    assert not any(row["error"] for row in rows)


class SilentEngine(ScriptedEngine):
    """An engine that answers one text and no other."""

    async def complete(self, prompt: Any) -> Completion:
        if "number 3 " not in prompt.messages[1]["content"]:
            await asyncio.sleep(600)
        return await super().complete(prompt)


def test_a_run_whose_engine_answers_nothing_any_more_stops_and_says_so(
    new_run: Any, work: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(annotation={"text_threshold": 0}, engine={"stall_minutes": 0.05})
    texts = {f"t{number}": f"Gate number {number} opens at noon." for number in range(8)}
    tables.write(run.artifact("texts"), schemas.TEXTS, tables.text_rows(texts))
    engine = functools.partial(SilentEngine, by_kind(rate_text="8", write_qa=GOOD_QUESTION))
    with pytest.raises(RunError, match=r"^no row was answered for 0\.05 minutes \(engine\.stall_minutes\)"):
        annotate.make(run, run.artifact("annotations"), work, start_engine=engine)

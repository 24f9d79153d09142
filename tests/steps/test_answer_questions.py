"""Step 6a: which questions are asked about which contexts, and how replies are read."""

import asyncio
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from aloftrag import schemas
from aloftrag.artifacts import Run
from aloftrag.corpus import text_id
from aloftrag.engine import PromptRefused
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.errors import RunError
from aloftrag.evaluation import contexts, questions
from aloftrag.job import Job
from aloftrag.prompts import rag
from aloftrag.steps import answer_questions
from tests.steps import mined, tables
from tests.steps.tables import Row

# Contexts. a, b and c are the three most similar texts, in this order.


@pytest.mark.parametrize(
    ("positive", "limit", "chosen"),
    [
        ("a", 30, "abc"),
        ("c", 30, "abc"),
        ("p", 30, "abp"),  # it replaces the least similar
        ("p", 99, "abp"),  # also where it would fit beside it
        ("a", 29, "ab"),  # only as many as fit
        ("p", 29, "ap"),
        ("long", 35, "a long"),  # and more of them when it is longer
        ("long", 45, "ab long"),
        ("long", 30, "long"),
        ("long", 10, "long"),  # it does not even fit alone: still asked about
    ],
)
def test_a_text_that_was_not_retrieved_replaces_the_least_similar(positive: str, limit: int, chosen: str) -> None:
    lengths = {"a": 10, "b": 10, "c": 10, "p": 10, "long": 25}
    expected = [*chosen.replace("long", "").strip(), *(["long"] if "long" in chosen else [])]
    assert contexts.choose_contexts(["a", "b", "c"], positive, lengths, limit) == expected


@pytest.mark.parametrize(("positive", "limit", "chosen"), [("a", 30, "abc"), ("p", 30, "abc"), ("c", 29, "ab"), ("p", 5, "a")])
def test_as_it_is_retrieved_no_text_is_put_in(positive: str, limit: int, chosen: str) -> None:
    lengths = {"a": 10, "b": 10, "c": 10, "p": 10}
    assert contexts.choose_contexts(["a", "b", "c"], positive, lengths, limit, as_is=True) == [*chosen]


# Which questions are asked.


def question_rows(per_text: dict[str, int]) -> pl.DataFrame:
    return pl.DataFrame([{"question_id": f"{text}-{n}", "text_id": text} for text, count in per_text.items() for n in range(count)])


@pytest.mark.parametrize("seed", range(5))
def test_questions_are_drawn_spread_over_the_texts(seed: int) -> None:
    rows = question_rows({"much": 20, "two": 2, "one": 1, "single": 1})
    texts = [questions.draw(rows, count, seed)["text_id"].to_list() for count in (3, 4, 6, 7, 24, 100)]
    assert len(set(texts[0])) == 3
    assert set(texts[1]) == {"much", "two", "one", "single"}
    assert sorted(texts[2]) == ["much", "much", "one", "single", "two", "two"]
    assert sorted(texts[3]) == ["much", "much", "much", "one", "single", "two", "two"]
    assert len(texts[4]) == len(texts[5]) == len(questions.draw(rows, None, seed)) == 24


def test_the_draw_depends_on_the_seed_and_the_ids_and_not_on_the_order() -> None:
    rows = question_rows({f"t{n}": 3 for n in range(20)})
    drawn = questions.draw(rows, 10, seed=0)
    assert questions.draw(rows.sample(fraction=1, shuffle=True, seed=1), 10, seed=0).equals(drawn)
    assert not questions.draw(rows, 10, seed=1).equals(drawn)
    assert set(questions.draw(rows, 9, seed=0)["question_id"]) < set(drawn["question_id"])  # a smaller draw is part of a larger one


def test_the_questions_of_held_out_texts_are_those_that_selection_kept(tmp_path: Path) -> None:
    rows = [tables.annotation(f"t{n}-0") for n in range(4)]
    splits = [("train", None), ("held_out", None), (None, "wrong language"), ("validation", None)]
    selected = [
        {"question_id": row["question_id"], "text_id": row["text_id"], "split": split, "drop_reason": reason}
        for row, (split, reason) in zip(rows, splits, strict=True)
    ]
    found = questions.held_out_questions(
        tables.write(tmp_path / "annotations", schemas.ANNOTATIONS, rows, files=2),
        tables.write(tmp_path / "negatives", schemas.NEGATIVES, [tables.negative("t1-0", []) | {"also_positive": ["t3"]}]),
        tables.write(tmp_path / "selection", schemas.SELECTION, selected),
    )
    (row,) = found.rows.to_dicts()
    kept = {"question_id": "t1-0", "text_id": "t1", "question": rows[1]["question"], "gold_answers": ["answer 0 of t1"]}
    assert row == kept | {"also_positive": ["t3"]}


# Gold.

# No two of them fit into 16 tokens.
GATES = ["The west gate opens every day at noon.", "The east gate is shut all year round.", "Only the north gate is painted red, by Ada."]


@pytest.fixture
def gold_job(new_run: Any, tmp_path: Path) -> Callable[..., Job]:
    """``gold_job(rows, ...)``: a job with these rows as its gold table."""

    def make(*rows: Row, **sections: Any) -> Job:
        (tmp_path / "gold.en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job: Job = new_run(evaluation={"gold": str(tmp_path / "gold.{language}.jsonl")}, **sections).job
        return job

    return make


def test_a_gold_context_is_known_by_its_text_id(gold_job: Callable[..., Job]) -> None:
    row = {"context": f"  {GATES[0]}\n", "question": " Which gate? ", "answer": "west", "answers": ["the west gate", "west"]}
    found = questions.gold_questions(gold_job(row, row), None)
    (asked,) = found.rows.to_dicts()  # the same question about the same text is asked once
    assert asked["text_id"] == text_id(GATES[0])
    assert (asked["question"], asked["gold_answers"]) == ("Which gate?", ["west", "the west gate"])
    assert found.texts == {text_id(GATES[0]): GATES[0]}


def test_a_gold_table_may_have_a_row_for_each_accepted_answer(gold_job: Callable[..., Job]) -> None:
    rows = [{"context": GATES[0], "question": "When?", "answer": answer} for answer in ("noon", "at noon", "noon")]
    found = questions.gold_questions(gold_job(*rows, {**rows[0], "context": GATES[1], "answer": "never"}), None)
    assert [row["gold_answers"] for row in found.rows.to_dicts()] == [["noon", "at noon"], ["never"]]
    assert found.counts == {"without_one_positive": 0, "incomplete": 0}


def test_without_chunks_the_answer_need_not_stand_in_the_context(gold_job: Callable[..., Job]) -> None:
    found = questions.gold_questions(gold_job({"context": GATES[0], "question": "Is it?", "answer": "yes"}), None)
    assert found.rows.height == 1
    assert found.counts == {"without_one_positive": 0, "incomplete": 0}


def test_of_a_cut_context_the_positive_is_the_one_chunk_that_holds_an_answer(gold_job: Callable[..., Job], smollm2: Path) -> None:
    def gold(question: str, answer: str, *answers: str) -> Row:
        return {"context": "\n\n".join(GATES), "question": question, "answer": answer, "answers": [answer, *answers]}

    job = gold_job(
        gold("one", "noon"),
        gold("another accepted answer", "midday", "noon"),
        gold("the third", "Ada"),
        gold("none", "midnight"),
        gold("several", "gate"),
        gold("several, by its answers", "noon", "Ada"),
        corpus={"paths": ["unused.md"], "chunk_tokens": 16},
    )
    found = questions.gold_questions(job, str(smollm2))
    positives = {row["question"]: found.texts[row["text_id"]] for row in found.rows.to_dicts()}
    assert positives == {"one": GATES[0], "another accepted answer": GATES[0], "the third": GATES[2]}
    assert found.counts == {"without_one_positive": 3, "incomplete": 0}


# Replies.


def question(question_id: str, contexts: int = 3) -> Row:
    return {
        "question_id": question_id,
        "text_id": "c1",
        "question": "Which gate?",
        "gold_answers": ["west"],
        "context_ids": [f"c{n}" for n in range(1, contexts + 1)],
        "similarities": [0.5] * contexts,
        "positive_position": 1,
        "also_positive_positions": [],
        "most_similar_position": 2,
        "most_words_position": 1,
        "is_hard": False,
        "messages": rag.first_turns([f"Text {n}." for n in range(contexts)], f"Which gate, {question_id}?", "English"),
    }


def replied(cited: str, answer: str = "the west gate") -> str:
    return f"### Reference\n{cited}\n\n### Answer\n{answer}"


REPLIES = {
    "good": (replied("2"), [2], "the west gate"),
    "several": (replied("3, 1"), [3, 1], "the west gate"),
    "malformed": ("The west gate, see text 2.", None, None),
    "out-of-range": (replied("4"), None, None),
    "cut": (None, None, None),
}


def table_of(variant: str, constrained: bool) -> dict[str, Row]:
    asked = pa.Table.from_pylist([question(name) for name in REPLIES], schema=schemas.QUESTIONS)
    column, other = ("constrained", "free") if constrained else ("free", "constrained")
    replies = [{"question_id": name, column: reply, other: replied("1")} for name, (reply, *_) in reversed(REPLIES.items())]
    table = answer_questions.answers_table(asked, pa.Table.from_pylist(replies), variant, constrained)
    assert table.schema.equals(schemas.ANSWERS)
    return {row["question_id"]: row for row in table.to_pylist()}


@pytest.mark.parametrize("constrained", [True, False])
def test_a_reply_is_read_by_question_and_one_without_the_form_has_no_citation_and_no_answer(constrained: bool) -> None:
    rows = table_of("base", constrained)
    for name, (reply, cited, answer) in REPLIES.items():
        assert rows[name]["completion"] == reply
        assert (rows[name]["cited_positions"], rows[name]["answer"]) == (cited, answer), name
        assert rows[name]["completion_free"] == (replied("1") if constrained else reply)
        assert (rows[name]["variant"], rows[name]["gold_answers"]) == ("base", ["west"])


def test_only_the_base_has_a_free_reply_beside() -> None:
    assert {row["completion_free"] for row in table_of("adapter", True).values()} == {None}


def test_a_position_must_be_among_the_contexts_of_its_own_question() -> None:
    asked = pa.Table.from_pylist([question("two", contexts=2), question("three", contexts=3)], schema=schemas.QUESTIONS)
    replies = pa.Table.from_pylist([{"question_id": name, "free": replied("3"), "constrained": None} for name in ("two", "three")])
    rows = answer_questions.answers_table(asked, replies, "base", False).to_pylist()
    assert [row["cited_positions"] for row in rows] == [None, [3]]


@pytest.mark.parametrize(
    ("free", "constrained", "by_itself", "wanted", "asked"),
    [
        (True, False, "Text 2.", {"free": "Text 2."}, ["free"]),
        (False, True, "Text 2.", {"constrained": "held"}, ["held"]),
        (True, True, replied("2"), {"free": replied("2"), "constrained": "held"}, ["beginning", "free", "held"]),
        # A reply that leaves the form at its beginning is kept, but not written to its end.
        (True, True, "Text 2.", {"free": "Text 2.", "constrained": "held"}, ["beginning", "held"]),
    ],
)
def test_a_question_is_asked_freely_or_in_the_asked_form_or_both(
    free: bool, constrained: bool, by_itself: str, wanted: Row, asked: list[str]
) -> None:
    calls = []

    def reply(prompt: Any) -> str | None:
        calls.append("held" if prompt.form else "free" if prompt.max_tokens == 99 else "beginning")
        assert prompt.form in (None, rag.form(4))
        return "held" if prompt.form else by_itself

    ask = answer_questions.answer(ScriptedEngine(reply), question("q", contexts=4), free=free, constrained=constrained, max_tokens=99)
    assert {key: value for key, value in asyncio.run(ask).items() if not key.endswith("_logprob")} == {"question_id": "q", **wanted}
    assert calls == asked


def replies_of(*rows: tuple[str | None, float | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"question_id": f"q{n}", "free": text, "free_logprob": logprob} for n, (text, logprob) in enumerate(rows)],
        schema=answer_questions._REPLIES,
    )


@pytest.mark.parametrize(
    ("base", "adapter", "is_applied"),
    [
        ([("a", -2.0)] * 10, [("a", -2.00001)] * 10, False),
        ([("a", -2.0)] * 100, [("a", -2.0)] * 99 + [("b", -2.0)], False),  # one of a hundred: rounding may turn a reply
        ([("a", -2.0)] * 100, [("a", -2.0)] * 98 + [("b", -2.0)] * 2, True),
        ([("a", -2.0)] * 10, [("a", -2.0)] * 9 + [("b", -2.0)], True),
        ([("a", -2.0)] * 10, [("a", -1.9)] * 10, True),  # the same words, said with more certainty
        ([("a", None)] * 10, [("a", None)] * 10, False),  # an engine that tells no probabilities
        ([("a", -2.0)] * 10, [(None, None)] * 10, True),
        ([(None, None)] * 10, [(None, None)] * 10, True),  # nothing to compare
        ([(None, None)] * 9 + [("a", -2.0)], [(None, None)] * 9 + [("b", -1.0)], True),
    ],
)
def test_an_adapter_that_answers_as_the_base_does_was_not_applied(base: list[Any], adapter: list[Any], is_applied: bool) -> None:
    why = answer_questions.why_not_applied(replies_of(*base), replies_of(*adapter), "free", rounding=1e-4, is_trained=True)
    assert (why is None) == is_applied
    if why is not None:
        assert re.match(r"(10 of 10|99 of 100) replies do not differ", why)


@pytest.mark.parametrize("adapter", [[("a", -2.0)] * 3, [("b", -1.0)] * 3, [(None, None)] * 3])  # whatever rounding makes of it
def test_an_untrained_adapter_was_not_applied(adapter: list[Any]) -> None:
    tables = replies_of(*[("a", -2.0)] * 3), replies_of(*adapter)
    why = answer_questions.why_not_applied(*tables, "free", rounding=1e-4, is_trained=False)
    assert why == "it was never trained, B is 0 in all its layers"


def test_a_cut_reply_and_a_prompt_too_long_are_no_replies() -> None:
    def too_long(prompt: Any) -> str | None:
        raise PromptRefused("text too long")

    for reply in (lambda prompt: None, too_long):
        answer = answer_questions.answer(ScriptedEngine(reply), question("q"), free=True, constrained=True, max_tokens=9)
        row = asyncio.run(answer)
        assert row["question_id"] == "q"
        assert (row.get("free"), row.get("constrained")) == (None, None)


# The whole step, with the real embedder and a scripted engine.

STRANGE = "The ferry to the island leaves pier four at dawn."
GOLD = [
    {"context": mined.TEXTS["rye"], "question": "With what is rye bread baked?", "answer": "sourdough"},
    {"context": mined.TEXTS["tram"], "question": "How often does tram number nine run?", "answer": "every ten minutes"},
    {"context": STRANGE, "question": "From which pier does the ferry to the island leave?", "answer": "pier four"},  # not in the corpus
    {"context": mined.TEXTS["cello"], "question": "Which bird nests in the hollow oak tree?", "answer": "an owl"},  # hard
]


def scripted_starter(reply_of: dict[str, Callable[[Any], str | None]]) -> Callable[..., Any]:
    """In place of ``engine.starter``: the base's replies, or those of a model that was given, the merged adapter."""

    def starter(run: Run, model: str | None = None, adapter: Path | None = None) -> Any:
        return functools.partial(ScriptedEngine, reply_of["adapter" if model or adapter else "base"])

    return starter


@pytest.fixture
def run_to_answer(mined_run: tuple[Run, dict[str, Any]], tmp_path: Path) -> Callable[[dict[str, Any]], Run]:
    """``run_to_answer(job settings)``: the run before the step; nothing is held out."""

    def make(change: dict[str, Any]) -> Run:
        folder = tmp_path / "answered"
        shutil.copytree(mined_run[0].folder, folder)
        selected = [
            {"question_id": mined.id_of(key), "text_id": mined.IDS[key[:-2]], "split": "train", "drop_reason": None}
            for key in mined.QUESTIONS
        ]
        tables.write(folder / "selection", schemas.SELECTION, selected)
        return Run(Job.model_validate({**mined_run[0].job.model_dump(), **change}), folder)

    return make


@pytest.fixture
def answered(run_to_answer: Callable[[dict[str, Any]], Run], work: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``answered(job settings, base=..., adapter=...)``: the run after the step, and its counts."""

    def make(change: dict[str, Any], **reply_of: Callable[[Any], str | None]) -> tuple[Run, dict[str, Any]]:
        run = run_to_answer(change)
        monkeypatch.setattr(answer_questions, "starter", scripted_starter(reply_of))
        # The scripted engine needs no merged model.
        monkeypatch.setattr(answer_questions, "_adapter_starter", lambda run, work: answer_questions.starter(run, model="merged"))
        monkeypatch.setattr(answer_questions.base_model, "hold_adapter", lambda adapter, job: None)  # there is none
        monkeypatch.setattr(answer_questions.base_model, "is_trained", lambda adapter: True)
        return run, answer_questions.make(run, run.artifact("answers"), work)

    return make


def cites_by_word(contexts: dict[str, str]) -> Callable[[Any], str]:
    """A model that knows which word of the question leads to which text."""

    def reply(prompt: Any) -> str:
        shown, _, asked = prompt.messages[1]["content"].partition("### Question")
        (wanted,) = [text for word, text in contexts.items() if word in asked]
        numbered = shown.split("### Text ")[1:]
        (position,) = [part.split()[0] for part in numbered if wanted in part]
        return f"### Reference\n{position}\n\n### Answer\nit is {wanted.split()[-1]}"

    return reply


def test_base_and_adapter_are_asked_the_same_questions_about_the_same_contexts(answered: Any, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    words = {"rye": mined.TEXTS["rye"], "tram": mined.TEXTS["tram"], "ferry": STRANGE, "bird": mined.TEXTS["cello"]}

    def base(prompt: Any) -> str:
        return "I do not know." if prompt.form is None else "### Reference\n1, 2, 3\n\n### Answer\nsomething"

    run, counts = answered({"evaluation": {"gold": str(gold)}}, base=base, adapter=cites_by_word(words))

    assert counts.pop("engines")["tokens"] > 0
    assert counts.pop("embedders")["characters"] > 0
    assert counts == {
        "questions": 4,
        "questions_from": "gold",
        "texts_added": 1,
        "without_one_positive": 0,
        "incomplete": 0,
        "unanswered": 0,
        "constrained": True,  # the base keeps the form in none of its free replies
        "base_format_ok_free": 0.0,
    }
    asked = {row["question"]: row for row in tables.read(run.artifact("questions"), "question_id")}
    assert asked.keys() == {row["question"] for row in GOLD}
    texts = {**{key: mined.TEXTS[name] for key, name in mined.NAMES.items()}, text_id(STRANGE): STRANGE}
    for gold_row in GOLD:
        row = asked[gold_row["question"]]
        shown = [texts[context] for context in row["context_ids"]]
        assert len(set(shown)) == 3
        assert shown[row["positive_position"] - 1] == gold_row["context"]
        assert row["is_hard"] == ("bird" in gold_row["question"])
        best = row["similarities"].index(max(row["similarities"])) + 1
        assert row["most_similar_position"] == best
        assert (row["positive_position"] == best) == (not row["is_hard"])
        assert row["gold_answers"] == [gold_row["answer"]]
        assert row["messages"] == rag.first_turns(shown, gold_row["question"], "English")
    bird = asked["Which bird nests in the hollow oak tree?"]
    nearest = {mined.IDS["owl"], mined.IDS["moss"]}  # and the third nearest gave way
    assert set(bird["context_ids"]) == nearest | {mined.IDS["cello"]}
    assert not pl.read_parquet(run.artifact("texts") / "*.parquet")["text"].str.contains("ferry").any()  # added for the evaluation only

    answers = {variant: tables.read(run.artifact("answers") / variant, "question") for variant in ("base", "adapter")}
    for row in answers["base"]:
        assert (row["variant"], row["cited_positions"], row["answer"]) == ("base", [1, 2, 3], "something")
        assert row["completion_free"] == "I do not know."  # out of form, but kept
    for row in answers["adapter"]:
        assert (row["variant"], row["cited_positions"]) == ("adapter", [row["positive_position"]])
        assert row["completion_free"] is None
        assert row["context_ids"] == asked[row["question"]]["context_ids"]
    assert [row["question_id"] for row in answers["base"]] == [row["question_id"] for row in answers["adapter"]]


def test_as_it_is_retrieved_a_hard_question_lacks_its_text(
    run_to_answer: Callable[[dict[str, Any]], Run], tmp_path: Path, work: Path
) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(json.dumps(row) + "\n" for row in GOLD))
    run = run_to_answer({"evaluation": {"gold": str(gold), "retrieval": "as-is"}})
    contexts.prepare_questions(run, run.artifact("questions"), work)
    asked = {row["question"]: row for row in tables.read(run.artifact("questions"), "question_id")}
    bird = asked.pop("Which bird nests in the hollow oak tree?")
    assert (bird["is_hard"], bird["positive_position"]) == (True, None)
    assert mined.IDS["cello"] not in bird["context_ids"]
    assert len(bird["context_ids"]) == 3
    assert bird["context_ids"][bird["most_words_position"] - 1] == mined.IDS["owl"]
    for row in asked.values():
        assert not row["is_hard"]
        assert row["context_ids"][row["positive_position"] - 1] == row["text_id"]


@pytest.fixture
def ten_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of ``contexts.prepare_questions``."""

    def prepare(run: Run, destination: Path, work: Path) -> dict[str, Any]:
        tables.write(destination, schemas.QUESTIONS, [question(f"q{n}") for n in range(10)], files=2)
        return {"questions": 10}

    monkeypatch.setattr(contexts, "prepare_questions", prepare)


@pytest.mark.usefixtures("ten_questions")
def test_an_adapter_that_answers_as_the_base_does_is_counted_as_not_applied(answered: Any) -> None:
    _, counts = answered({}, base=cites_first(), adapter=cites_first())
    assert counts["not_applied"] == "10 of 10 replies do not differ from those of the base model, nor do their probabilities"


@pytest.mark.usefixtures("ten_questions")
def test_a_base_that_keeps_the_form_by_itself_is_left_free_and_so_is_the_adapter(answered: Any) -> None:
    def cut_once(prompt: Any) -> str | None:
        return None if prompt.messages[-1]["content"].endswith("q3?") and not prompt.form else cites_first()(prompt)

    run, counts = answered({}, base=cut_once, adapter=cites_first("2"))

    assert counts.pop("engines")["tokens"] > 0
    assert counts == {"questions": 10, "unanswered": 1, "constrained": False, "base_format_ok_free": 0.9}
    for variant, cited in (("base", [1]), ("adapter", [2])):
        rows = tables.read(run.artifact("answers") / variant, "question_id")
        assert [row["question_id"] for row in rows] == [f"q{n}" for n in range(10)]
        assert all(row["cited_positions"] == (None if (variant, row["question_id"]) == ("base", "q3") else cited) for row in rows)


def cites_first(position: str = "1") -> Callable[[Any], str]:
    """A model that cites one position, whatever it is asked, and keeps no form when held to one."""
    return lambda prompt: "held" if prompt.form else f"### Reference\n{position}\n\n### Answer\nyes"


def test_no_question_at_all_is_an_error(answered: Any) -> None:
    with pytest.raises(RunError, match=r"evaluation\.gold"):
        answered({}, base=cites_first(), adapter=cites_first())

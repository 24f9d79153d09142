"""Step 5a: what is kept and why not, and what stands in a chat."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aloftrag import schemas
from aloftrag.artifacts import Run
from aloftrag.errors import RunError
from aloftrag.job import Job
from aloftrag.retrieval import guard
from aloftrag.steps import assemble_chats
from aloftrag.training.chats import ChatPlan, Turn, chat_row, plan_chats, write_messages
from aloftrag.training.rows import training_row
from tests.steps import tables
from tests.steps.tables import Row, annotation, negative

pytestmark = pytest.mark.usefixtures("ray_session")

ALL_TRAIN: dict[str, Any] = {"evaluation": {"gold": "not_read_here.jsonl"}, "training": {"validation": 0.0}}


def select(job: Job, annotations: list[Row], ranks: dict[str, int] | None = None, clusters: dict[str, str] | None = None) -> dict[str, Row]:
    """The selection by question; of each row's text the cluster is itself unless ``clusters`` says otherwise."""
    negatives = [
        negative(row["question_id"], [], (ranks or {}).get(row["question_id"], 1)) for row in annotations if row["question"] is not None
    ]
    of_text = {row["text_id"]: row["text_id"] for row in annotations} | (clusters or {})
    selection = assemble_chats.select(
        pl.DataFrame(annotations, schema=pl.DataFrame(schemas.ANNOTATIONS.empty_table()).schema),
        pl.DataFrame(negatives, schema=pl.DataFrame(schemas.NEGATIVES.empty_table()).schema),
        pl.DataFrame({"text_id": list(of_text), "cluster_id": list(of_text.values())}),
        job,
    )
    assert selection.to_arrow().cast(schemas.SELECTION).num_rows == len(annotations)
    return {row["question_id"]: row for row in selection.to_dicts()}


# What speaks against a question, in the order in which the first reason is given.
FLAWS: list[tuple[str, Row]] = [
    ("text rated too low", {"text_rating": 7.5}),
    ("text without a rating", {"text_rating": None}),
    ("no usable question", {"question": None, "answer": None}),
    ("wrong language", {"wrong_language": True}),
    ("refers to text", {"refers_to_text": True}),
    ("copies instruction", {"copies_instruction": True}),
    ("question rated too low", {"question_rating": 7.0}),
    ("answer rated too low", {"answer_rating": 7.0}),
]
STRICT: dict[str, Any] = {"annotation": {"rate_qa": True}, "negatives": {"require_self_retrieval": True}, **ALL_TRAIN}
RATED = {"question_rating": 8.0, "answer_rating": 8.0, "text_rating": 8.0}


@pytest.mark.parametrize(("reason", "flaw"), FLAWS)
def test_each_flaw_alone_leaves_a_question_out_for_its_reason(reason: str, flaw: Row, new_run: Any) -> None:
    selection = select(new_run(**STRICT).job, [annotation("good-0", **RATED), annotation("bad-0", **{**RATED, **flaw})])
    assert (selection["bad-0"]["split"], selection["bad-0"]["drop_reason"]) == (None, reason)
    assert (selection["good-0"]["split"], selection["good-0"]["drop_reason"]) == ("train", None)  # the threshold itself is enough


@pytest.mark.parametrize("other", ["text rated too low", "text without a rating"])  # a text has a low rating or none
def test_of_several_flaws_the_first_in_order_is_the_reason(other: str, new_run: Any) -> None:
    flaws = [flaw for flaw in FLAWS if flaw[0] != other]
    rows = [
        annotation(f"from_{number}-0", **{**RATED, **{key: value for _, flaw in flaws[number:] for key, value in flaw.items()}})
        for number in range(len(flaws) + 1)
    ]
    selection = select(new_run(**STRICT).job, rows, ranks={row["question_id"]: 2 for row in rows})
    reasons = [*(reason for reason, _ in flaws), "does not find its own text first"]
    assert [selection[row["question_id"]]["drop_reason"] for row in rows] == reasons


def test_a_question_that_does_not_find_its_own_text_first_is_left_out_only_when_that_is_asked_for(new_run: Any) -> None:
    row = annotation("t-0", **RATED)
    assert select(new_run(**STRICT).job, [row], {"t-0": 2})["t-0"]["drop_reason"] == "does not find its own text first"
    assert select(new_run(**STRICT).job, [row], {"t-0": 1})["t-0"]["drop_reason"] is None
    assert select(new_run(annotation={"rate_qa": True}, **ALL_TRAIN).job, [row], {"t-0": 99})["t-0"]["drop_reason"] is None


def test_without_rate_qa_the_ratings_of_question_and_answer_are_not_looked_at(new_run: Any) -> None:
    rows = [annotation("low-0", question_rating=0.0, answer_rating=0.0), annotation("none-0")]
    assert {row["drop_reason"] for row in select(new_run(**ALL_TRAIN).job, rows).values()} == {None}


def test_with_rate_qa_a_missing_rating_counts_as_too_low(new_run: Any) -> None:
    rows = [annotation("q-0", answer_rating=10.0), annotation("a-0", question_rating=10.0)]
    selection = select(new_run(**STRICT).job, rows)
    assert selection["q-0"]["drop_reason"] == "question rated too low"
    assert selection["a-0"]["drop_reason"] == "answer rated too low"


@pytest.mark.parametrize("flaw", ["wrong_language", "refers_to_text", "copies_instruction"])
def test_a_flaw_that_the_job_forgives_leaves_nothing_out(flaw: str, new_run: Any) -> None:
    selection = select(new_run(annotation={"drop": {flaw: False}}, **ALL_TRAIN).job, [annotation("t-0", **{flaw: True})])
    assert selection["t-0"]["split"] == "train"


def test_a_flaw_that_could_not_be_told_leaves_nothing_out(new_run: Any) -> None:
    selection = select(new_run(**ALL_TRAIN).job, [annotation("t-0", wrong_language=None, refers_to_text=None)])
    assert selection["t-0"]["split"] == "train"


def test_with_threshold_zero_no_rating_is_needed(new_run: Any) -> None:
    rows = [annotation("none-0", text_rating=None), annotation("zero-0", text_rating=0.0)]
    selection = select(new_run(annotation={"text_threshold": 0}, **ALL_TRAIN).job, rows)
    assert {row["split"] for row in selection.values()} == {"train"}


# Splits.

MANY = [annotation(f"{n:04d}-{question}") for n in range(600) for question in range(2)]
PAIRED = {f"{n:04d}": f"cluster {n // 2}" for n in range(600)}


def splits(job: Job, rows: list[Row] = MANY) -> dict[str, str]:
    return {key: row["split"] for key, row in select(job, rows, clusters=PAIRED).items()}


def test_a_cluster_is_never_divided_between_training_validation_and_evaluation(new_run: Any) -> None:
    found = splits(new_run(evaluation={"held_out": 0.3}, training={"validation": 0.3}).job)
    by_cluster: dict[str, set[str]] = {}
    for key, split in found.items():
        by_cluster.setdefault(PAIRED[key.partition("-")[0]], set()).add(split)
    assert all(len(splits_of_cluster) == 1 for splits_of_cluster in by_cluster.values())
    shares = Counter(next(iter(split)) for split in by_cluster.values())
    # 300 clusters: 90 held out, of the other 210 63 for validation; each within four standard deviations
    assert 58 < shares["held_out"] < 122
    assert 36 < shares["validation"] < 90


def test_with_gold_questions_nothing_is_held_out(new_run: Any) -> None:
    without = splits(new_run(evaluation={"held_out": 0.3}, training={"validation": 0.3}).job)
    with_gold = splits(new_run(evaluation={"held_out": 0.3, "gold": "gold.csv"}, training={"validation": 0.3}).job)
    assert set(with_gold.values()) == {"train", "validation"}
    # Which texts are for validation does not depend on the gold.
    assert all(with_gold[key] == split for key, split in without.items() if split != "held_out")


def test_the_split_depends_on_the_seed_and_not_on_the_order(new_run: Any) -> None:
    settings: dict[str, Any] = {"evaluation": {"held_out": 0.3}, "training": {"validation": 0.3}}
    first = splits(new_run(**settings).job)
    assert splits(new_run(**settings).job, random.Random(0).sample(MANY, len(MANY))) == first
    assert splits(new_run(seed=1, **settings).job) != first


# Chats: thirty texts on a ring, two questions each; the negatives of a text are the next three.

RING = 30
QUESTION_IDS = [f"{n:02d}-{question}" for n in range(RING) for question in range(2)]


def neighbours(question_id: str) -> list[str]:
    return [f"{(int(question_id[:2]) + step) % RING:02d}" for step in (1, 2, 3)]


def ring_run(run: Run, seed: int = 0, **cut: int) -> Run:
    """The inputs of the ring in another order and other files for each seed."""
    mixed = random.Random(seed)

    def write(name: str, schema: Any, rows: list[Row]) -> None:
        tables.write(run.artifact(name), schema, mixed.sample(rows, len(rows)) if seed else rows, **cut)

    ids = [f"{n:02d}" for n in range(RING)]
    tables.write(run.artifact("texts"), schemas.TEXTS, tables.text_rows({key: f"This is what text {key} says." for key in ids}))
    write("annotations", schemas.ANNOTATIONS, [annotation(key) for key in QUESTION_IDS])
    write("negatives", schemas.NEGATIVES, [negative(key, neighbours(key)) for key in QUESTION_IDS])
    write("clusters", schemas.CLUSTERS, [{"text_id": key, "cluster_id": key} for key in ids])
    return run


def chats_of(run: Run, work: Path) -> list[Row]:
    assemble_chats.make(run, run.artifact("chats"), work)
    return tables.read(run.artifact("chats"), "chat_id")


@pytest.fixture
def chats(new_run: Any, work: Path) -> Any:
    """``chats(section={...}, ...)``: the chats of the ring with four contexts."""
    return lambda **sections: chats_of(ring_run(new_run(negatives={"contexts": 4}, **sections)), work)


def positives(chat: Row) -> list[str]:
    """The texts at the positive positions."""
    return [chat["context_ids"][position - 1] for position in chat["positive_positions"]]


def test_a_chat_holds_its_positive_and_the_negatives_and_cites_the_positive(chats: Any) -> None:
    made = chats(**ALL_TRAIN)
    assert [chat["chat_id"] for chat in made] == QUESTION_IDS
    for chat in made:
        key = chat["chat_id"]
        assert chat["question_ids"] == [key]
        assert chat["text_ids"] == [key[:2]] == positives(chat)
        assert sorted(chat["context_ids"]) == sorted([key[:2], *neighbours(key)])
        system, user, assistant = chat["messages"]
        assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
        shown = "".join(f"### Text {number}\nThis is what text {text} says.\n\n" for number, text in enumerate(chat["context_ids"], 1))
        assert user["content"] == f"{shown}### Question\nWhat is number {key[-1]} about {key[:2]}?"
        (position,) = chat["positive_positions"]
        assert assistant["content"] == f"### Reference\n{position}\n\n### Answer\nanswer {key[-1]} of {key[:2]}"


def test_the_positive_stands_at_every_position_and_the_seed_decides_where(chats: Any) -> None:
    first = {chat["chat_id"]: chat for chat in chats(**ALL_TRAIN)}
    places = Counter(chat["positive_positions"][0] for chat in first.values())
    assert set(places) == {1, 2, 3, 4}
    assert max(places.values()) < 30
    again = {chat["chat_id"]: chat for chat in chats(**ALL_TRAIN)}
    other = {chat["chat_id"]: chat for chat in chats(seed=1, **ALL_TRAIN)}
    assert again == first
    assert other.keys() == first.keys()
    assert any(other[key]["context_ids"] != first[key]["context_ids"] for key in first)


NOTHING_SKIPPED: Row = {"also_positive": [], "doubtful": []}


def test_the_order_of_a_chat_does_not_depend_on_which_other_questions_there_are(new_run: Any) -> None:
    rows = [
        {
            "question_id": key,
            "text_id": key[:2],
            "question": "?",
            "answer": "!",
            "negative_ids": neighbours(key),
            "split": "train",
            **NOTHING_SKIPPED,
        }
        for key in QUESTION_IDS
    ]
    job = new_run(negatives={"contexts": 4}).job
    whole = {plan.chat_id: plan for plan in plan_chats(pl.DataFrame(rows), job)}
    part = {plan.chat_id: plan for plan in plan_chats(pl.DataFrame(rows[10:20]), job)}
    assert len(part) == 10
    assert part == {key: whole[key] for key in part}


def two_texts(**of_b: Any) -> list[Row]:
    """Two questions about a and one about b, each other's neighbours; ``of_b`` is what step 4 said about the texts of b's."""
    rows = [("a-0", "a", ["b"]), ("a-1", "a", ["b"]), ("b-0", "b", ["a"])]
    return [
        {
            "question_id": key,
            "text_id": text,
            "question": "?",
            "answer": "!",
            "negative_ids": neighbours,
            "split": "train",
            **NOTHING_SKIPPED,
            **(of_b if text == "b" else {}),
        }
        for key, text, neighbours in rows
    ]


def planned(new_run: Any, rows: list[Row], per_chat: int) -> dict[str, ChatPlan]:
    job = new_run(negatives={"contexts": 2}, training={"questions_per_chat": per_chat}).job
    return {plan.chat_id: plan for plan in plan_chats(pl.DataFrame(rows), job)}


def test_a_question_is_not_asked_beside_a_text_that_may_answer_it_too(new_run: Any) -> None:
    known = planned(new_run, two_texts(), 3)
    assert {turn.question_id for turn in known["a-0"].turns} == {"a-0", "a-1", "b-0"}
    doubtful = planned(new_run, two_texts(doubtful=["a"], negative_ids=["c"]), 3)
    assert {key: {turn.question_id for turn in plan.turns} for key, plan in doubtful.items()} == {"a-0": {"a-0", "a-1"}, "b-0": {"b-0"}}


def test_of_two_questions_about_a_text_one_may_not_fit_beside_the_others_contexts(new_run: Any) -> None:
    rows = two_texts()
    rows[1] |= {"doubtful": ["b"], "negative_ids": ["c"]}
    plans = planned(new_run, rows, 4)
    assert {turn.question_id for turn in plans["a-0"].turns} == {"a-0", "b-0"}
    assert {turn.question_id for turn in plans["a-1"].turns} == {"a-1"}


def cited(plan: ChatPlan, statement: str | None = None) -> dict[str, str]:
    """What stands under the heading of the references, by question."""
    messages = write_messages(plan, {text: f"Text {text}." for text in plan.context_ids}, "English", statement)
    return {
        turn.question_id: reply["content"].partition("### Reference\n")[2].partition("\n")[0]
        for turn, reply in zip(plan.turns, messages[2::2], strict=True)
    }


def test_a_text_that_answers_a_question_too_is_cited_with_its_own(new_run: Any) -> None:
    plan = planned(new_run, two_texts(also_positive=["a"]), 3)["a-0"]
    place = plan.context_ids.index("a") + 1
    assert cited(plan) == {"a-0": str(place), "a-1": str(place), "b-0": "1, 2"}


def test_what_may_answer_is_what_was_skipped_for_it_and_no_verdict_was_given_on() -> None:
    reasons = [
        guard.TOO_SIMILAR,
        guard.TOO_SIMILAR,
        guard.TOO_SIMILAR,
        guard.COPY_OF_POSITIVE,
        guard.COPY_OF_SKIPPED,
        guard.COPY_OF_NEGATIVE,
    ]
    verdicts = [None, True, False, None, None, None]
    skipped = [
        {"text_id": name, "reason": reason, "answers": answers} for name, reason, answers in zip("abcdef", reasons, verdicts, strict=True)
    ]
    schema = {"skipped": pl.List(pl.Struct({"text_id": pl.String, "reason": pl.String, "answers": pl.Boolean}))}
    rows = pl.DataFrame({"skipped": [skipped, []]}, schema=schema)
    assert rows.select(assemble_chats.doubtful())["doubtful"].to_list() == [["a", "d", "e"], []]


def test_a_question_is_asked_beside_its_own_text_though_a_copy_of_that_may_answer(new_run: Any) -> None:
    rows = two_texts()
    rows[1] |= {"doubtful": ["a", "copy of a"]}
    assert "a-1" in {turn.question_id for turn in planned(new_run, rows, 4)["a-0"].turns}


def test_a_copy_of_what_may_answer_may_answer_too() -> None:
    rows = pl.DataFrame({"doubtful": [["skipped", "x"], [], ["alone"]]})
    alone = {"text_id": ["alone", "x", "skipped", "copy"], "cluster_id": ["alone", "x", "skipped", "copy"]}
    copied = alone | {"cluster_id": ["alone", "x", "copy", "copy"]}
    found = [
        rows.select(assemble_chats.with_copies("doubtful", pl.DataFrame(clusters)))["doubtful"].to_list() for clusters in (alone, copied)
    ]
    assert found == [[["skipped", "x"], [], ["alone"]], [["copy", "skipped", "x"], [], ["alone"]]]


@pytest.mark.parametrize("per_chat", [2, 4, 7])
def test_several_questions_per_chat_are_all_about_its_contexts_and_of_its_own_split(per_chat: int, chats: Any, new_run: Any) -> None:
    made = chats(training={"questions_per_chat": per_chat, "validation": 0.2}, evaluation={"held_out": 0.2})
    selection = {row["question_id"]: row["split"] for row in tables.read(new_run().artifact("selection"), "question_id")}
    assert set(selection.values()) == {"train", "validation", "held_out"}
    for chat in made:
        assert {selection[question] for question in chat["question_ids"]} == {chat["split"]}
        assert len(set(chat["question_ids"])) == len(chat["question_ids"]) <= per_chat
        assert len(chat["context_ids"]) == len(set(chat["context_ids"])) == 4
        assert positives(chat) == chat["text_ids"] == [question[:2] for question in chat["question_ids"]]
        system, *turns = chat["messages"]
        assert system["role"] == "system"
        asked, replies = turns[::2], turns[1::2]
        for question, position, user, reply in zip(chat["question_ids"], chat["positive_positions"], asked, replies, strict=True):
            assert user["content"].endswith(f"### Question\nWhat is number {question[-1]} about {question[:2]}?")
            assert reply["content"] == f"### Reference\n{position}\n\n### Answer\nanswer {question[-1]} of {question[:2]}"
        assert all("### Text" not in user["content"] for user in asked[1:])
    assert {chat["split"] for chat in made} == {"train", "validation"}
    assert max(len(chat["question_ids"]) for chat in made) == per_chat


@pytest.mark.parametrize("per_chat", [1, 2, 4, 7])
def test_each_kept_question_is_asked_and_with_one_a_chat_in_a_chat_of_its_own(per_chat: int, chats: Any, new_run: Any) -> None:
    made = chats(training={"questions_per_chat": per_chat, "validation": 0.2}, evaluation={"held_out": 0.2})
    selection = tables.read(new_run().artifact("selection"), "question_id")
    kept = {row["question_id"] for row in selection if row["split"] in ("train", "validation")}
    assert {question for chat in made for question in chat["question_ids"]} == kept
    if per_chat == 1:
        assert sorted(chat["chat_id"] for chat in made) == sorted(kept)
        assert all(chat["question_ids"] == [chat["chat_id"]] for chat in made)


def test_a_question_whose_chats_were_cut_is_asked_in_another(new_run: Any, work: Path) -> None:
    training = {"questions_per_chat": 16, "validation": 0.0}
    whole = chats_of(ring_run(new_run(name="whole", negatives={"contexts": 4}, training=training, evaluation={"gold": "g.jsonl"})), work)
    longest = max(len(chat["token_ids"]) for chat in whole)
    for cut in (10, 60, 150):
        run = new_run(
            name=f"cut-{cut}", negatives={"contexts": 4}, training={**training, "max_tokens": longest - cut}, evaluation={"gold": "g.jsonl"}
        )
        counts = assemble_chats.make(ring_run(run), run.artifact("chats"), work)
        made = tables.read(run.artifact("chats"), "chat_id")
        assert counts["contexts_left_out"]
        assert all(len(chat["token_ids"]) <= longest - cut for chat in made)
        assert {question for chat in made for question in chat["question_ids"]} == set(QUESTION_IDS)
        assert len({chat["chat_id"] for chat in made}) == len(made) == counts["chats"]


def test_a_held_out_text_may_be_a_context_of_training(chats: Any, new_run: Any) -> None:
    made = chats(evaluation={"held_out": 0.3}, training={"validation": 0.0})
    held_out = {row["text_id"] for row in tables.read(new_run().artifact("selection"), "question_id") if row["split"] == "held_out"}
    assert held_out & {context for chat in made for context in chat["context_ids"]}
    assert not held_out & {text for chat in made for text in chat["text_ids"]}


def test_the_same_chats_whatever_the_order_and_the_files_of_the_inputs(new_run: Any, work: Path) -> None:
    settings: dict[str, Any] = {"negatives": {"contexts": 4}, "training": {"questions_per_chat": 5}}
    first = chats_of(ring_run(new_run(name="first", **settings)), work)
    for seed, cut in [(1, {"files": 2}), (2, {"files": 7}), (3, {"group_rows": 4})]:
        assert chats_of(ring_run(new_run(name=f"cut-{seed}", **settings), seed, **cut), work) == first


def test_what_was_left_out_is_counted_by_reason(new_run: Any, work: Path) -> None:
    run = ring_run(new_run(negatives={"contexts": 4}, **ALL_TRAIN))
    rows = [annotation(key, **dict(FLAWS[int(key[:2]) % 10][1] if int(key[:2]) % 10 < 3 else {})) for key in QUESTION_IDS]
    tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, rows)
    counts = assemble_chats.make(run, run.artifact("chats"), work)
    left_out = {"text rated too low": 6, "text without a rating": 6, "no usable question": 6}
    tokens = sum(len(chat["token_ids"]) for chat in tables.read(run.artifact("chats"), "chat_id"))
    assert counts == {
        "questions": 60,
        "kept": {"train": 42},
        "left_out": left_out,
        "chats": 42,
        "turns": 42,
        "tokens": tokens,
        "unanswerable": 0,
        "contexts_left_out": 0,
    }


@pytest.mark.parametrize("evaluated", [ALL_TRAIN, {}])
def test_when_nothing_is_left_to_train_on_the_reasons_are_told(new_run: Any, work: Path, evaluated: dict[str, Any]) -> None:
    run = ring_run(new_run(negatives={"contexts": 4}, **evaluated))
    tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, [annotation(key, text_rating=1.0) for key in QUESTION_IDS])
    with pytest.raises(RunError, match="'text rated too low': 60"):
        assemble_chats.make(run, run.artifact("chats"), work)


def test_when_no_question_is_held_out_the_setting_is_named(new_run: Any, work: Path) -> None:
    run = ring_run(new_run(negatives={"contexts": 4}, evaluation={"held_out": 1e-9}))
    with pytest.raises(RunError, match=r"evaluation\.held_out = 1e-09 holds out no text"):
        assemble_chats.make(run, run.artifact("chats"), work)


# How many contexts, which, and what fits.


def test_a_chat_is_stored_as_the_model_reads_it(chats: Any, smollm2_tokenizer: Any) -> None:
    for chat in chats(**ALL_TRAIN)[:5]:
        row = training_row(smollm2_tokenizer, chat["chat_id"], chat["messages"])
        assert (chat["token_ids"], chat["targets"]) == (row.token_ids, row.targets)


def test_with_a_range_of_contexts_each_number_is_drawn_and_the_nearest_stay(new_run: Any, work: Path) -> None:
    run = ring_run(new_run(negatives={"contexts": [2, 4]}, **ALL_TRAIN))
    chats = {chat["chat_id"]: chat for chat in chats_of(run, work)}
    counts = Counter(len(chat["context_ids"]) for chat in chats.values())
    assert counts.keys() == {2, 3, 4}
    assert min(counts.values()) > 8  # of 60
    for key, chat in chats.items():
        assert sorted(chat["context_ids"]) == sorted([key[:2], *neighbours(key)[: len(chat["context_ids"]) - 1]])


GUARDED: dict[str, Any] = {"negatives": {"contexts": 3, "relative_margin": 0.1}}
STATEMENT = "The texts do not say."


def test_of_some_chats_the_text_is_withheld_and_the_reply_cites_none_and_says_so(new_run: Any, work: Path) -> None:
    run = ring_run(new_run(**GUARDED, evaluation={"gold": "g.jsonl"}, training={"validation": 0.0, "unanswerable": 0.5}))
    chats = chats_of(run, work)
    withheld = [chat for chat in chats if chat["positive_positions"] == [None]]
    assert 18 < len(withheld) < 42  # of 60, within three standard deviations of 30
    for chat in chats:
        key, reply = chat["chat_id"], chat["messages"][-1]["content"]
        assert "none" in chat["messages"][0]["content"]  # it is told that this may be
        assert len(chat["context_ids"]) == 3
        if chat in withheld:
            assert sorted(chat["context_ids"]) == sorted(neighbours(key))
            assert reply == f"### Reference\nnone\n\n### Answer\n{STATEMENT}"
        else:
            assert sorted(chat["context_ids"]) == sorted([key[:2], *neighbours(key)[:2]])
            assert "none" not in reply


@pytest.mark.parametrize("known", [{"also_positive": ["x"]}, {"doubtful": ["x"]}, {"negative_ids": ["a"]}])
def test_nothing_is_withheld_where_another_text_may_answer_or_none_can_stand_in(known: Row, new_run: Any) -> None:
    job = new_run(negatives={"contexts": 2, "relative_margin": 0.1}, training={"unanswerable": 0.999}).job
    row: Row = {"question_id": "b-0", "text_id": "b", "question": "?", "answer": "!", "negative_ids": ["a", "c"], "split": "train"}
    (withheld,) = plan_chats(pl.DataFrame([{**row, **NOTHING_SKIPPED}]), job)
    (kept,) = plan_chats(
        pl.DataFrame(
            [{**row, **NOTHING_SKIPPED, **known}], schema_overrides={"also_positive": pl.List(pl.String), "doubtful": pl.List(pl.String)}
        ),
        job,
    )
    assert sorted(withheld.context_ids) == ["a", "c"]
    assert sorted(kept.context_ids) == ["a", "b"]


def test_beside_a_withheld_text_the_questions_about_the_others_are_asked_as_ever(new_run: Any) -> None:
    job = new_run(negatives={"contexts": 2, "relative_margin": 0.1}, training={"unanswerable": 0.999, "questions_per_chat": 4}).job
    rows = [
        {
            "question_id": f"{text}-0",
            "text_id": text,
            "question": "?",
            "answer": "!",
            "negative_ids": others,
            "split": "train",
            **NOTHING_SKIPPED,
        }
        for text, others in (("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"]))
    ]
    plan = next(plan for plan in plan_chats(pl.DataFrame(rows), job) if plan.chat_id == "a-0")
    found = cited(plan, STATEMENT)
    assert found.pop("a-0") == "none"
    assert found == {f"{text}-0": str(plan.context_ids.index(text) + 1) for text in ("b", "c")}


LONG = {"own": "Own. " * 30, "near": "Near. " * 30, "far": "Far. " * 30}


def fitted(tokenizer: Any, longest: int) -> Row | None:
    turns = [
        Turn("own-0", "own", "Whose?", "mine"),
        Turn("own-1", "own", "And whose is that?", "mine too"),
        Turn("far-0", "far", "How far?", "far"),
    ]
    plan = ChatPlan("own-0", "train", ["far", "own", "near"], turns, ("near", "far"))
    return chat_row(plan, LONG, "English", None, tokenizer, longest)


def test_contexts_that_do_not_fit_are_left_out_the_least_similar_first_then_further_questions(smollm2_tokenizer: Any) -> None:
    whole = fitted(smollm2_tokenizer, 10_000)
    assert whole is not None
    assert (whole["context_ids"], whole["question_ids"]) == (["far", "own", "near"], ["own-0", "own-1", "far-0"])
    expected = [
        (["own", "near"], ["own-0", "own-1"], [1, 1]),  # without the far one and what is asked about it
        (["own"], ["own-0", "own-1"], [1, 1]),
        (["own"], ["own-0"], [1]),
    ]
    longest = len(whole["token_ids"])
    for context_ids, question_ids, positions in expected:
        row = fitted(smollm2_tokenizer, longest - 1)
        assert row is not None
        assert (row["context_ids"], row["question_ids"], row["positive_positions"]) == (context_ids, question_ids, positions)
        assert fitted(smollm2_tokenizer, len(row["token_ids"])) == row  # as many tokens as are allowed fit
        longest = len(row["token_ids"])
    assert fitted(smollm2_tokenizer, longest - 1) is None


def test_a_question_that_is_too_long_with_its_own_text_is_left_out_with_the_reason(new_run: Any, work: Path) -> None:
    run = ring_run(new_run(negatives={"contexts": 4}, training={"validation": 0.0, "max_tokens": 400}, evaluation={"gold": "g.jsonl"}))
    rows = [annotation(key, **({"question": "Why? " * 300} if key == "07-1" else {})) for key in QUESTION_IDS]
    tables.write(run.artifact("annotations"), schemas.ANNOTATIONS, rows)
    counts = assemble_chats.make(run, run.artifact("chats"), work)
    selection = {row["question_id"]: row for row in tables.read(run.artifact("selection"), "question_id")}
    assert (selection["07-1"]["split"], selection["07-1"]["drop_reason"]) == (None, assemble_chats.TOO_LONG)
    assert selection["07-0"]["split"] == "train"
    assert counts["left_out"] == {assemble_chats.TOO_LONG: 1}
    assert counts["chats"] == 59
    assert all("07-1" not in chat["question_ids"] for chat in tables.read(run.artifact("chats"), "chat_id"))

"""Step 6b on four questions whose scores were worked out by hand."""

import functools
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aloftrag import artifacts, schemas
from aloftrag.artifacts import Run
from aloftrag.engine.scripted import ScriptedEngine
from aloftrag.evaluation import judge
from aloftrag.prompts import rag
from aloftrag.steps import score_answers
from tests.steps import tables
from tests.steps.tables import Row

GOOD_FORM = "### Reference\n1\n\n### Answer\nsomething"

# question: (positive, most similar, is_hard, accepted answers)
QUESTIONS: dict[str, tuple[int, int, bool, list[str]]] = {
    "easy-right": (2, 2, False, ["Ada Moss"]),
    "easy-all": (3, 1, False, ["mill at Norwick", "Norwick Mill"]),
    "hard-unusable": (1, 4, True, ["noon"]),
    "hard-wrong": (4, 1, True, ["six"]),
}
# variant: question: (cited positions, answer); None for a reply that could not be used
Answers = dict[str, tuple[list[int] | None, str | None]]
BASE: Answers = {
    "easy-right": ([2], "Ada Moss."),  # right in everything: F1 1
    "easy-all": ([1, 2, 3, 4], "The mill"),  # precision 1/4; F1 of {mill} with {norwick, mill}: 2/3
    "hard-unusable": (None, None),
    "hard-wrong": ([1], "six boats"),  # wrong text, the answer is in it: F1 2/3
}
ADAPTER: Answers = {
    "easy-right": ([2], "Ada Moss"),
    "easy-all": ([3], "the Mill at Norwick"),
    "hard-unusable": ([1, 2], "noon"),  # precision 1/2
    "hard-wrong": ([4], "six"),
}


def rows_of(variant: str, answers: Answers, completion_free: str | None) -> list[Row]:
    return [
        {
            "question_id": name,
            "variant": variant,
            "text_id": f"text of {name}",
            "question": f"{name}?",
            "context_ids": ["c1", "c2", "c3", "c4"],
            "positive_position": positive,
            "also_positive_positions": [],
            "most_similar_position": most_similar,
            "most_words_position": 1,
            "is_hard": is_hard,
            "completion": "as it came",
            "cited_positions": answers[name][0],
            "answer": answers[name][1],
            "completion_free": completion_free,
            "gold_answers": accepted,
        }
        for name, (positive, most_similar, is_hard, accepted) in QUESTIONS.items()
    ]


@pytest.fixture
def scored(new_run: Any, work: Path) -> Any:
    """``scored(base, adapter)``: scores.json, and the run that it is of."""

    def make(base: Answers, adapter: Answers, constrained: bool = False, **also_counted: str) -> tuple[dict[str, Any], Run]:
        run = new_run()
        answers = run.artifact("answers")
        # The adapter's rows lie in another order and in two files.
        tables.write(answers / "base", schemas.ANSWERS, rows_of("base", base, GOOD_FORM if constrained else None))
        tables.write(answers / "adapter", schemas.ANSWERS, rows_of("adapter", adapter, None)[::-1], files=2)
        artifacts.finish(answers, "answer_questions", {}, {"questions_from": "gold", "constrained": constrained, **also_counted}, 1.0)
        counts = score_answers.make(run, run.artifact("scores"), work)
        scores = artifacts.read_json(run.folder / "scores.json")
        assert counts == {"verdict": scores["verdict"], "why": scores["why"]}
        return scores, run

    return make


def test_the_scores_are_those_worked_out_by_hand(scored: Any) -> None:
    scores, _ = scored(BASE, ADAPTER)
    assert {key: scores[key] for key in ("job", "language", "questions", "questions_from", "contexts", "constrained")} == {
        "job": "test",
        "language": "en",
        "questions": 4,
        "questions_from": "gold",
        "contexts": 4,
        "constrained": False,
    }
    assert scores["baselines"] == {"chance": 0.25, "most_similar": 0.25, "most_words": 0.25}
    # The first hit is right of easy-right alone, as is the adapter; the words lead to the first text, which hard-unusable asks about.
    assert scores["against_baselines"] == {
        "most_similar": {"both": 1, "adapter_only": 2, "baseline_only": 0, "neither": 1},
        "most_words": {"both": 0, "adapter_only": 3, "baseline_only": 1, "neither": 0},
    }
    assert scores["retrieval"] == {"mode": "forced", "recall": 0.5}
    assert scores["base"] == {
        "citation_accuracy": 0.5,  # easy-right, easy-all
        "citation_exact": 0.25,  # easy-right
        "citation_precision": 0.3125,  # (1 + 1/4 + 0 + 0) / 4
        "citation_recall": 0.5,
        "citation_f1": 0.35,  # (1 + 2 x 1/4 / (5/4) + 0 + 0) / 4
        "format_ok": 0.75,  # all but hard-unusable, which is wrong in everything
        "answer_accuracy": None,
        "answer_f1": 0.583333,  # (1 + 2/3 + 0 + 2/3) / 4
        "answer_contains": 0.5,  # easy-right, hard-wrong
        "right_answer_wrong_citation": 0.25,  # hard-wrong
        "easy": {"questions": 2, "citation_accuracy": 1.0, "citation_exact": 0.5, "answer_f1": 0.833333},
        "hard": {"questions": 2, "citation_accuracy": 0.0, "citation_exact": 0.0, "answer_f1": 0.333333},
    }
    assert scores["adapter"] == {
        "citation_accuracy": 1.0,
        "citation_exact": 0.75,
        "citation_precision": 0.875,
        "citation_recall": 1.0,
        "citation_f1": 0.916667,  # (1 + 1 + 2/3 + 1) / 4
        "format_ok": 1.0,
        "answer_accuracy": None,
        "answer_f1": 1.0,
        "answer_contains": 1.0,
        "right_answer_wrong_citation": 0.0,
        "easy": {"questions": 2, "citation_accuracy": 1.0, "citation_exact": 1.0, "answer_f1": 1.0},
        "hard": {"questions": 2, "citation_accuracy": 1.0, "citation_exact": 0.5, "answer_f1": 1.0},
    }


def test_differences_are_the_adapters_gain_paired_by_question(scored: Any) -> None:
    difference = scored(BASE, ADAPTER)[0]["difference"]
    assert {name: value["mean"] for name, value in difference.items()} == {
        "citation_accuracy": 0.5,
        "citation_exact": 0.5,
        "answer_f1": 0.416667,
    }
    # Two questions won and none lost: 2 x (1/2)^2. The order of the adapter's rows does not pair them wrongly.
    assert difference["citation_exact"]["p"] == 0.5
    assert scored(ADAPTER, BASE)[0]["difference"]["citation_exact"]["mean"] == -0.5


def test_hard_questions_are_not_counted_as_easy_ones(scored: Any) -> None:
    only_hard_right = {name: ([positive if is_hard else 1 + positive % 4], "?") for name, (positive, _, is_hard, _) in QUESTIONS.items()}
    scores, run = scored(BASE, only_hard_right)
    assert [scores["adapter"][kind]["citation_accuracy"] for kind in ("hard", "easy")] == [1.0, 0.0]
    rows = pl.read_parquet(run.artifact("scores") / "*.parquet")
    assert rows.height == 8
    assert set(rows.filter(pl.col("is_hard"))["question_id"]) == {"hard-unusable", "hard-wrong"}


def test_unusable_replies_are_wrong_and_counted(scored: Any) -> None:
    scores, _ = scored(BASE, dict.fromkeys(QUESTIONS, (None, None)))
    means = {key: value for key, value in scores["adapter"].items() if isinstance(value, float)}
    assert len(means) == 9
    assert set(means.values()) == {0.0}
    assert scores["adapter"]["easy"]["questions"] + scores["adapter"]["hard"]["questions"] == 4


def test_the_verdict_is_in_the_scores(scored: Any) -> None:
    all_right: Answers = {name: ([positive], accepted[0]) for name, (positive, _, _, accepted) in QUESTIONS.items()}
    scores, _ = scored(BASE, all_right)
    assert scores["verdict"] == "ship"
    assert "+75.0 points" in scores["why"]
    assert "first hit" not in scores["why"]

    scores, _ = scored(BASE, BASE)
    assert scores["verdict"] == "hold"
    assert scores["difference"]["citation_exact"] == {"mean": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert "first hit would be right as often or more (25.0% against 25.0%)" in scores["why"]


def test_what_was_not_applied_is_held(scored: Any) -> None:
    scores, _ = scored(BASE, ADAPTER, not_applied="never trained")
    assert (scores["verdict"], scores["not_applied"]) == ("hold", "never trained")
    assert scores["why"] == "the adapter was not applied: never trained"


@pytest.mark.parametrize(("constrained", "expected"), [(True, 1.0), (False, None)])
def test_the_form_kept_unasked_is_told_when_replies_were_constrained(constrained: bool, expected: float | None, scored: Any) -> None:
    scores, _ = scored(BASE, ADAPTER, constrained=constrained)
    assert scores["base"].get("format_ok_free") == expected
    assert "format_ok_free" not in scores["adapter"]


def test_what_is_missing_is_wrong_to_cite_and_right_to_refuse() -> None:
    rows = rows_of(
        "adapter", {"easy-right": ([2], "Ada"), "easy-all": ([], "-"), "hard-unusable": ([], "-"), "hard-wrong": ([1], "six")}, None
    )
    for row in rows:
        row["positive_position"] = None if row["is_hard"] else row["positive_position"]
    scored = score_answers.score_rows(pl.DataFrame(rows, schema=dict(pl.DataFrame(schemas.ANSWERS.empty_table()).schema)), "en")
    assert scored["citation_exact"].to_list() == [1.0, 0.0, 0.0, 0.0]
    # Of two refusals one is right; of two questions that lack their text one is refused; of the two others one is refused wrongly.
    assert score_answers.abstention(scored) == {"questions": 2, "precision": 0.5, "recall": 0.5, "over_refusal": 0.5}
    answered = scored.filter(~pl.col("abstained"))
    assert score_answers.abstention(answered) == {"questions": 1, "precision": None, "recall": 0.0, "over_refusal": 0.0}


def test_a_text_that_is_known_to_answer_too_may_stand_for_a_missing_one() -> None:
    (row,) = [row for row in rows_of("adapter", ADAPTER, None) if row["question_id"] == "hard-wrong"]
    row |= {"positive_position": None, "also_positive_positions": [4]}
    (scored,) = score_answers.score_rows(pl.DataFrame([row]), "en").to_dicts()
    assert (scored["citation_exact"], scored["may_abstain"]) == (1.0, False)


def test_a_text_is_right_once_also_where_it_is_the_positive_and_known_to_answer_too() -> None:
    assert score_answers.right_positions({"positive_position": 2, "also_positive_positions": [4, 2]}) == [2, 4]


def test_a_judges_verdicts_are_the_answer_accuracy(new_run: Any, work: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says yes to what names Ada, no to the mill, and nothing usable about one of the others."""
    monkeypatch.setattr(judge, "identity", lambda named: named)
    monkeypatch.setattr(judge, "_MOST_UNUSABLE", 0.2)
    run = new_run(evaluation={"judge": "some/judge"})
    rows = {variant: rows_of(variant, answers, None) for variant, answers in (("base", BASE), ("adapter", ADAPTER))}
    for variant, of_variant in rows.items():
        tables.write(run.artifact("answers") / variant, schemas.ANSWERS, of_variant)
    asked = [
        {**{name: row[name] for name in schemas.QUESTIONS.names if name in row}, "similarities": [0.5] * 4}
        | {"messages": rag.first_turns([f"text {n} about {row['question_id']}" for n in range(1, 5)], row["question"], "English")}
        for row in rows["base"]
    ]
    tables.write(run.artifact("questions"), schemas.QUESTIONS, asked)
    artifacts.finish(run.artifact("answers"), "answer_questions", {}, {"questions_from": "gold", "constrained": False}, 1.0)

    def verdict(prompt: Any) -> str:
        shown = prompt.messages[1]["content"]
        answer = shown.rpartition("### Answer\n")[2]
        name, position = ("easy-right", 2) if "easy-right" in shown else ("easy-all", 3) if "easy-all" in shown else ("hard", None)
        assert position is None or f"### Text\ntext {position} about {name}" in shown
        return "yes" if "Ada" in answer else "no" if "ill" in answer else "hm" if answer == "noon" else "yes"

    counts = score_answers.make(run, run.artifact("scores"), work, functools.partial(ScriptedEngine, verdict))
    scores = artifacts.read_json(run.folder / "scores.json")
    assert counts["unusable_verdicts"] == 1
    # Of noon it says nothing, so that question is left out of both; of the others the mill is wrong.
    assert scores["base"]["answer_accuracy"] == scores["adapter"]["answer_accuracy"] == 0.666667
    assert scores["difference"]["answer_accuracy"]["mean"] == 0.0
    assert scores["base"]["right_answer_wrong_citation"] == 0.25  # six boats
    assert scores["judge"] == "some/judge"

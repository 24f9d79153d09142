from typing import Any

import pytest

from aloftrag.evaluation.verdict import verdict

UP, DOWN, EVEN = (0.123, [0.081, 0.164]), (-0.05, [-0.09, -0.01]), (0.01, [-0.03, 0.05])


def scores(exact: tuple, f1: tuple, judged: tuple | None = None, most_similar: float = 0.5, accuracy: tuple = EVEN) -> dict[str, Any]:
    found = {"citation_exact": exact, "citation_accuracy": accuracy, "answer_f1": f1, "answer_accuracy": judged}
    return {
        "difference": {name: {"mean": value[0], "ci95": value[1], "p": 0.5} for name, value in found.items() if value},
        "adapter": {"citation_exact": 0.7},
        "baselines": {"chance": 0.1, "most_similar": most_similar},
    }


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        (scores(UP, UP), "ship"),
        (scores(UP, EVEN), "ship"),
        (scores(UP, EVEN, UP), "ship"),
        (scores(UP, EVEN, EVEN, accuracy=DOWN), "ship"),  # citation accuracy is reported and does not decide
        (scores(EVEN, UP), "hold"),
        (scores(EVEN, UP, accuracy=UP), "hold"),
        (scores(DOWN, UP), "hold"),
        (scores(UP, DOWN), "hold"),
        (scores(UP, UP, DOWN), "hold"),
        (scores(UP, DOWN, UP), "hold"),
        (scores((0.1, [0.0, 0.2]), UP), "hold"),  # above 0, not at it
        (scores(UP, (-0.1, [-0.2, 0.0])), "ship"),  # wholly below 0, not up to it
    ],
)
def test_an_adapter_ships_when_it_cites_better_and_answers_no_worse(difference: dict[str, Any], word: str) -> None:
    assert verdict(difference)[0] == word


def test_an_adapter_that_was_not_applied_is_held_whatever_the_difference() -> None:
    assert verdict({**scores(UP, UP), "not_applied": "never trained"}) == ("hold", "the adapter was not applied: never trained")


def test_the_reason_gives_the_gain_in_points_and_its_interval() -> None:
    assert verdict(scores(UP, EVEN))[1] == "exact citations +12.3 points (95% CI 8.1 to 16.4) and answers no worse"


def test_the_reason_says_that_a_gain_is_not_certain() -> None:
    assert verdict(scores(EVEN, UP))[1] == "exact citations +1.0 points (95% CI -3.0 to 5.0): not certainly better than the base model"


def test_the_reason_names_the_answer_metrics_that_got_worse() -> None:
    assert "but answer f1 got worse (-5.0 points)" in verdict(scores(UP, DOWN, UP))[1]
    assert "but answer accuracy got worse (-5.0 points)" in verdict(scores(UP, UP, DOWN))[1]
    both = verdict(scores(UP, DOWN, DOWN))[1]
    assert "answer accuracy" in both
    assert "answer f1" in both


@pytest.mark.parametrize(("most_similar", "is_named"), [(0.9, True), (0.7, True), (0.69, False)])
@pytest.mark.parametrize("exact", [UP, EVEN])
def test_the_reason_names_the_retrievers_first_hit_when_the_adapter_is_not_above_it(
    most_similar: float, is_named: bool, exact: tuple
) -> None:
    why = verdict(scores(exact, UP, most_similar=most_similar))[1]
    assert ("retriever's first hit" in why) == is_named
    assert not is_named or f"{100 * most_similar:.1f}% against 70.0%" in why

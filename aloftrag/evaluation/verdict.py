"""Should the adapter be used? One word, and one sentence that says why."""

from typing import Any

SHIP, HOLD = "ship", "hold"
_ANSWER_METRICS = ("answer_accuracy", "answer_f1")


def verdict(scores: dict[str, Any]) -> tuple[str, str]:
    """``ship`` or ``hold``, and why, from the ``difference``, ``adapter`` and ``baselines`` of scores.json.

    ``not_applied``, where it is there, says why there is no difference to judge.
    Ship: exact citations are better with the 95 % interval above 0, and no answer metric that is there is worse with its
    interval below 0.
    """
    if "not_applied" in scores:
        return HOLD, f"the adapter was not applied: {scores['not_applied']}"
    difference = scores["difference"]
    exact = difference["citation_exact"]
    worse = [name for name in _ANSWER_METRICS if name in difference and difference[name]["ci95"][1] < 0]
    better = exact["ci95"][0] > 0
    citations = f"exact citations {_points(exact['mean'])} points (95% CI {_interval(exact['ci95'])})"
    if not better:
        why = f"{citations}: not certainly better than the base model"
    elif worse:
        names = " and ".join(name.replace("_", " ") for name in worse)
        why = f"{citations}, but {names} got worse ({_points(difference[worse[0]]['mean'])} points)"
    else:
        why = f"{citations} and answers no worse"
    if scores["adapter"]["citation_exact"] <= scores["baselines"]["most_similar"]:
        why += (
            f"; citing the retriever's first hit would be right as often or more "
            f"({100 * scores['baselines']['most_similar']:.1f}% against {100 * scores['adapter']['citation_exact']:.1f}%)"
        )
    return (SHIP if better and not worse else HOLD), why


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"

"""Runs side by side."""

from typing import Any

import pytest

from aloftrag.report import compare


def scores(job: str, language: str, base: float, adapter: float, p: float = 0.01) -> dict[str, Any]:
    def variant(exact: float) -> dict[str, float]:
        return {"citation_exact": exact, "citation_accuracy": exact, "answer_f1": 0.5}

    return {
        "job": job,
        "language": language,
        "questions": 300,
        "questions_from": "gold",
        "baselines": {"most_similar": 0.9},
        "base": variant(base),
        "adapter": variant(adapter),
        "difference": {"citation_exact": {"mean": adapter - base, "ci95": [adapter - base - 0.05, adapter - base + 0.05], "p": p}},
        "verdict": "ship",
    }


def test_each_run_has_a_line_with_the_papers_figure_beside() -> None:
    heading, line, *rest = compare.table([scores("xquad-en-cpu", "en", 0.25, 0.74)])
    for name in ("run", "exact citations", "p (Holm)", "paper's", "verdict"):
        assert name in heading
    for part in ("xquad-en-cpu/en", "300 gold", "25.0 -> 74.0", "+49.0 (+44.0 to +54.0)", "0.0100", "90.0", "-> ", "ship"):
        assert part in line
    assert line.index("25.0 -> 74.0") == heading.index("exact citations")
    assert "mean of" not in "\n".join(rest)


def test_p_values_are_corrected_for_the_number_of_runs_and_the_means_compared() -> None:
    lines = compare.table([scores("a", "en", 0.2, 0.5, p=0.01), scores("a", "de", 0.4, 0.6, p=0.04), scores("b", "en", 0.3, 0.7, p=0.03)])
    assert [line.split("  ")[0] for line in lines[1:4]] == ["a/en", "a/de", "b/en"]
    assert [p in line for p, line in zip(("0.0300", "0.0600", "0.0600"), lines[1:4], strict=True)] == [True] * 3
    overall = "\n".join(lines[4:])
    assert "mean of 3 runs" in overall
    assert "citation_exact    30.0 -> 60.0   p = 0.0351" in overall  # t = 0.3 / (0.1 / sqrt 3) with 2 degrees of freedom
    assert "paper's:" not in overall


@pytest.mark.parametrize(
    ("job", "language", "citation"),
    [
        ("xquad", "de", True),
        ("XQuAD-en", "en", True),
        ("pira_test", "pt", True),
        ("mlqa.small", "vi", True),
        ("chaii1", "hi", True),
        ("chaii-1-large", "hi", True),
        ("SK-QuAD", "sk", True),
        ("skquad", "sk", True),
        ("pirá", "pt", True),
        ("xquad", "ja", False),  # not in the paper
        ("handbook", "en", False),
        ("xquadratic", "en", False),
    ],
)
def test_a_jobs_name_tells_its_data_set(job: str, language: str, citation: bool) -> None:
    assert (compare.paper_figure(job, language) is not None) == citation


def test_a_figure_of_the_paper() -> None:
    found = compare.paper_figure("ARCD", "ar") or {}
    assert [found[name] for name in ("citation_base", "citation_adapter", "answer_base", "answer_adapter")] == [
        "72.0",
        "72.2",
        "78.0",
        "78.8",
    ]

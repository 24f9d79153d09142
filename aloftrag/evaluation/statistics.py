"""How certain a difference between base and adapter is; always paired by question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Adapter minus base: the mean, its 95 % bootstrap interval, and the p-value of no difference."""

    mean: float
    ci95: tuple[float, float]
    p: float

    def as_json(self) -> dict[str, object]:
        """The form of scores.json."""
        return {"mean": round(self.mean, 6), "ci95": [round(bound, 6) for bound in self.ci95], "p": round(self.p, 6)}


def paired_difference(base: np.ndarray, adapter: np.ndarray, seed: int) -> Difference:
    """The difference of two scores per question, float [questions].

    The interval is a percentile bootstrap over questions; p is exact McNemar's for rates (scores of 0 and 1), the paired
    bootstrap's otherwise.
    """
    differences = adapter - base
    random = np.random.default_rng(seed)
    count = len(differences)
    means = np.array([differences[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    is_rate = np.isin(base, [0, 1]).all() and np.isin(adapter, [0, 1]).all()
    p = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())) if is_rate else _bootstrap_p(means)
    return Difference(float(differences.mean()), (float(low), float(high)), p)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: of the questions whose result changed, how many changed for the better."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _bootstrap_p(means: np.ndarray) -> float:
    """Two-sided: twice the share of resampled means on the far side of 0, never below what the resamples can tell."""
    far = min((means <= 0).mean(), (means >= 0).mean())
    return float(min(1.0, max(2 * far, 1 / len(means))))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests at once, corrected so that one false alarm among all is as rare as in one (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def paired_t_test(base: Sequence[float], adapter: Sequence[float]) -> float:
    """p of no difference between the mean scores of the same data sets (paper, tables 2 to 5); ``nan`` for fewer than two sets."""
    from scipy.stats import ttest_rel

    return float(ttest_rel(base, adapter).pvalue) if len(base) > 1 else float("nan")

import numpy as np
import pytest
from scipy import stats

from aloftrag.evaluation.statistics import holm, mcnemar, paired_difference, paired_t_test


def scores(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    base = random.beta(2, 2, count)
    return base, np.clip(base + random.normal(0.05, 0.2, count), 0, 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_interval_is_that_of_scipys_percentile_bootstrap(seed: int) -> None:
    base, adapter = scores(seed)
    expected = stats.bootstrap((adapter - base,), np.mean, n_resamples=10_000, method="percentile", random_state=1).confidence_interval
    found = paired_difference(base, adapter, seed=0)
    assert found.ci95 == pytest.approx((expected.low, expected.high), abs=0.002)
    assert found.mean == pytest.approx(np.mean(adapter) - np.mean(base))


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (0, 5, 2 / 2**5),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (1, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_of_rates_the_p_value_is_mcnemars_on_the_questions_that_changed() -> None:
    base = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 30 + [0.0] * 10)
    adapter = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 30 + [0.0] * 10)
    found = paired_difference(base, adapter, seed=0)
    assert found.p == pytest.approx(stats.binomtest(8, 10).pvalue)
    assert found.mean == pytest.approx(6 / 50)


def test_of_other_scores_the_p_value_agrees_with_a_paired_test() -> None:
    for seed in range(5):
        base, adapter = scores(seed)
        expected = stats.ttest_rel(base, adapter).pvalue
        assert paired_difference(base, adapter, seed=0).p == pytest.approx(expected, abs=0.03)


def test_equal_scores_differ_by_nothing() -> None:
    base = np.array([0.0, 0.3, 1.0])
    found = paired_difference(base, base, seed=0)
    assert (found.mean, found.ci95, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_difference_beyond_what_resampling_can_tell_has_no_p_value_of_zero() -> None:
    base = np.full(50, 0.1)
    assert 0 < paired_difference(base, base + 0.5, seed=0).p <= 0.001


def test_swapping_base_and_adapter_turns_the_sign() -> None:
    base, adapter = scores(3)
    one, other = paired_difference(base, adapter, seed=5), paired_difference(adapter, base, seed=5)
    assert one.mean == pytest.approx(-other.mean)
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert one.p == pytest.approx(other.p)


def test_the_same_seed_gives_the_same_interval() -> None:
    base, adapter = scores(4)
    assert paired_difference(base, adapter, seed=1) == paired_difference(base, adapter, seed=1)
    assert paired_difference(base, adapter, seed=1) != paired_difference(base, adapter, seed=2)


def test_scores_json_has_mean_interval_and_p() -> None:
    base = np.array([0.0, 0.0, 1.0, 1.0])
    assert paired_difference(base, base, seed=0).as_json() == {"mean": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, and no less than the one before
        ([0.2], [0.2]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holms_correction_by_hand(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


def test_the_paired_t_test_over_data_sets() -> None:
    assert paired_t_test([0.2, 0.4, 0.3], [0.5, 0.6, 0.7]) == pytest.approx(2 * stats.t.sf(0.3 / (0.1 / 3**0.5), 2))
    assert np.isnan(paired_t_test([0.2], [0.5]))

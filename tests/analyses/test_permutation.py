import numpy as np
import pytest

from analyses.statistics.permutation import (
    adjusted_p,
    document_permutations,
    label_assignments,
    label_test,
    permutation_p,
)
from analyses.statistics.runs import log_r_contrast


def test_every_row_is_an_order_of_all_documents() -> None:
    orders = document_permutations(7, n_resamples=50, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(7), (50, 1)))
    assert len(np.unique(orders, axis=0)) > 40


def test_p_counts_the_observed_value_among_the_draws() -> None:
    null = np.arange(9.0)[:, None]
    np.testing.assert_allclose(permutation_p(np.array([8.5]), null), 1 / 10)
    np.testing.assert_allclose(permutation_p(np.array([7.0]), null), 3 / 10)
    np.testing.assert_allclose(permutation_p(np.array([-1.0]), null), 1.0)


def test_draw_equal_but_for_rounding_counts_as_reached() -> None:
    assert permutation_p(np.array(0.1 + 0.2), np.array([0.3])) == 1.0


def test_missing_value_has_no_p() -> None:
    assert np.isnan(permutation_p(np.array(np.nan), np.full(5, np.nan)))


def test_too_few_documents_or_draws_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least 2, the data have 1"):
        document_permutations(1, n_resamples=10, rng=rng)
    with pytest.raises(ValueError, match="n_resamples is 0"):
        document_permutations(5, n_resamples=0, rng=rng)


@pytest.mark.parametrize(
    ("counts", "n_distinct"), [((3, 3), 20), ((4, 2), 15), ((3, 1), 4), ((2, 1, 1), 12), ((3,), 1)]
)
def test_every_relabelling_is_listed_once_and_the_observed_one_first(counts, n_distinct) -> None:
    label = np.random.default_rng(0).permutation(np.repeat(list("abc")[: len(counts)], counts))
    found, exact = label_assignments(label, n_resamples=100, rng=np.random.default_rng(0))
    assert exact
    assert found.shape == (n_distinct, len(label))
    assert len(np.unique(found, axis=0)) == n_distinct
    assert found[0].tolist() == label.tolist()
    assert (np.sort(found, axis=1) == np.sort(label)).all()


def test_too_many_relabellings_are_drawn_at_random() -> None:
    label = np.repeat([0, 1], 10)
    found, exact = label_assignments(label, n_resamples=500, rng=np.random.default_rng(0))
    assert not exact
    assert found.shape == (501, 20)
    assert (found.sum(axis=1) == 10).all()
    np.testing.assert_allclose(found[1:].mean(axis=0), 0.5, atol=0.08)


def raw_contrast(r: np.ndarray, between: int = 1, within: int = 2):
    """Mean r of pairs with one run of label 1 minus that of pairs with two."""
    first, second = np.triu_indices(len(r), k=1)

    def statistic(label: np.ndarray) -> float:
        kind = label[first] + label[second]
        pairs = r[first, second]
        if not (kind == within).any():
            return float(pairs[kind == between].mean())
        return float(pairs[kind == between].mean() - pairs[kind == within].mean())

    return statistic


def noisy_matrix(n: int, seed: int = 0) -> np.ndarray:
    r = 0.5 + 0.1 * np.random.default_rng(seed).random((n, n))
    return (r + r.T) / 2


@pytest.mark.parametrize(
    ("counts", "smallest"), [((3, 3), 1 / 20), ((4, 2), 1 / 15), ((3, 1), 1 / 4)]
)
def test_few_runs_cap_the_attainable_p_of_a_one_sided_contrast(counts, smallest) -> None:
    label = np.repeat([0, 1], counts)
    found = label_test(raw_contrast(noisy_matrix(len(label))), label, rng=np.random.default_rng(0))
    assert found.exact
    assert found.smallest_p == pytest.approx(smallest)
    assert smallest - 1e-12 <= found.p <= 1
    assert found.p * len(found.null) == pytest.approx(round(found.p * len(found.null)))


@pytest.mark.parametrize(("n", "smallest"), [(3, 1 / 10), (4, 2 / 70)])
def test_exchanging_equal_arms_ties_delta_and_doubles_the_attainable_p(n, smallest) -> None:
    r = noisy_matrix(2 * n)
    label = np.repeat([0, 1], n)
    found = label_test(
        lambda arm: float(log_r_contrast(r, arm)), label,
        alternative="less", rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.smallest_p == pytest.approx(smallest)


def test_planted_arms_reach_the_smallest_p_and_the_other_side_does_not() -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    r = np.where(label[:, None] == label, 0.9, 0.8) + 0.001 * noisy_matrix(8)
    rng = np.random.default_rng(0)
    delta = lambda arm: float(log_r_contrast(r, arm))  # noqa: E731
    assert label_test(delta, label, alternative="less", rng=rng).p == pytest.approx(2 / 70)
    assert label_test(delta, label, alternative="greater", rng=rng).p == 1.0
    assert label_test(delta, label, alternative="two-sided", rng=rng).p == pytest.approx(2 / 70)


def test_label_test_of_two_means_agrees_with_scipy() -> None:
    from scipy import stats

    x = np.random.default_rng(1).standard_normal(9)
    label = np.repeat([0, 1], [5, 4])

    def difference(arm: np.ndarray) -> float:
        return x[arm == 1].mean() - x[arm == 0].mean()

    found = label_test(difference, label, alternative="greater", rng=np.random.default_rng(0))
    expected = stats.permutation_test(
        (x[:5], x[5:]), lambda a, b: b.mean() - a.mean(), alternative="greater", n_resamples=10_000
    )
    assert found.exact
    assert found.p == pytest.approx(expected.pvalue)


def test_monte_carlo_p_counts_the_observed_labels_and_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 8)
    p = []
    for _ in range(400):
        x = rng.standard_normal(16)
        found = label_test(
            lambda arm, x=x: x[arm == 1].mean() - x[arm == 0].mean(), label, n_resamples=99, rng=rng
        )
        assert found.p >= 1 / 100
        p.append(found.p)
    assert not found.exact
    assert 8 <= (np.array(p) <= 0.05).sum() <= 34  # 20 expected, 99.9% two-sided


def one_factor_r(rng: np.random.Generator, *, own: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of L = T + A_arm + e for 3 + 3 runs, the second arm noisier; A of spread own."""
    arm = np.repeat([0, 1], 3)
    noise = np.array([0.3, 0.7])[arm]
    shared = rng.standard_normal(400) + own * rng.standard_normal((2, 400))[arm]
    return np.corrcoef(shared + noise[:, None] * rng.standard_normal((6, 400))), arm


def test_noise_of_arms_alone_rejects_the_raw_contrast_always_and_delta_near_its_level() -> None:
    """Runs of arms that differ in noise are not quite exchangeable: .10 becomes .14 at 3 + 3."""
    rng = np.random.default_rng(0)
    n_replicates = 300
    rejected = {"delta": 0, "raw": 0}
    for _ in range(n_replicates):
        r, arm = one_factor_r(rng)
        delta = label_test(
            lambda label, r=r: float(log_r_contrast(r, label)), arm, alternative="less", rng=rng
        )
        rejected["delta"] += delta.p <= 0.1 + 1e-12
        rejected["raw"] += label_test(raw_contrast(r), arm, rng=rng).p <= 0.05 + 1e-12
    assert 26 <= rejected["delta"] <= 58  # 42 expected, 99% two-sided
    assert rejected["raw"] > 0.9 * n_replicates


def test_an_arm_part_is_found_as_often_as_three_runs_an_arm_allow() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        r, arm = one_factor_r(rng, own=0.4)
        found.append(
            label_test(
                lambda label, r=r: float(log_r_contrast(r, label)), arm, alternative="less", rng=rng
            ).p
        )
    assert np.median(found) == pytest.approx(1 / 10)


def test_relabellings_that_differ_by_rounding_alone_are_ties() -> None:
    tenths = np.array([1, 2, 3, 3, 2, 1])  # .1 + .2 + .3 is more than .3 + .2 + .1
    label = np.array([1, 1, 1, 0, 0, 0])
    exact, rounded = (
        label_test(lambda arm, x=x: float(sum(x[arm == 1])), label, rng=np.random.default_rng(0))
        for x in (tenths, tenths / 10)
    )
    assert rounded.p == exact.p
    assert rounded.smallest_p == exact.smallest_p


def test_a_relabelling_without_a_statistic_counts_against_the_claim() -> None:
    x = np.array([5.0, 1.0, 2.0, 3.0])

    def difference(arm: np.ndarray) -> float:
        return np.nan if arm[3] else float(x[arm == 1].mean() - x[arm == 0].mean())

    found = label_test(difference, np.array([1, 0, 0, 0]), rng=np.random.default_rng(0))
    assert found.p == pytest.approx(2 / 4)
    assert found.smallest_p == pytest.approx(2 / 4)


def test_a_statistic_that_is_missing_has_no_p() -> None:
    found = label_test(lambda arm: np.nan, np.array([0, 1]), rng=np.random.default_rng(0))
    assert np.isnan(found.p)
    assert np.isnan(found.smallest_p)


# Benjamini and Hochberg's example; corrected values by statsmodels and by hand
P = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216, 0.222, 0.251, 0.269,
     0.275, 0.34, 0.341, 0.384, 0.569, 0.594, 0.696, 0.762, 0.94, 0.942, 0.975, 0.986]  # fmt: skip


def test_known_family_is_corrected_as_known() -> None:
    p = np.array(P)
    holm = [0.025, 0.192, 0.897, 0.902, 0.902] + 20 * [1.0]
    np.testing.assert_allclose(adjusted_p(p), holm)
    bh = [0.025, 0.1, *3 * [0.21], 0.25, 1.85 / 7, *7 * [27.5 / 56], *2 * [0.5328125],
          9.6 / 17, *2 * [14.85 / 19], 0.87, 19.05 / 21, *4 * [0.986]]  # fmt: skip
    np.testing.assert_allclose(adjusted_p(p, method="fdr_bh"), bh)
    by = [0.09539895444383767, 0.3815958177753507, *3 * [0.8013512173282364], 0.9539895444383767]
    np.testing.assert_allclose(adjusted_p(p, method="fdr_by"), by + 19 * [1.0])


def test_tied_p_values_stay_tied_in_any_order() -> None:
    p = np.array([0.04, 0.01, 0.03, 0.01])
    np.testing.assert_allclose(adjusted_p(p), [0.06, 0.04, 0.06, 0.04])
    np.testing.assert_allclose(adjusted_p(p, method="fdr_bh"), [0.04, 0.02, 0.04, 0.02])


def test_missing_p_values_stay_missing_and_do_not_count() -> None:
    p = adjusted_p(np.array([[0.01, np.nan], [0.04, np.nan]]))
    np.testing.assert_allclose(p, [[0.02, np.nan], [0.04, np.nan]])
    assert np.isnan(adjusted_p(np.full(3, np.nan))).all()

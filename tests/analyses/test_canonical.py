from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics.canonical import mean_squared_cca, pwcca, svcca

X = np.array([[1, 0], [2, 1], [0, 3], [4, 1], [1, 1], [3, 5]], dtype=float)
Y = np.array([[2, 1, 0], [0, 1, 1], [1, 4, 2], [3, 0, 1], [1, 1, 1], [5, 2, 6]], dtype=float)
MEASURES = [mean_squared_cca, svcca, pwcca]


def _alike(n: int = 200) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6)) * [5, 4, 3, 2, 1, 0.1] + 4
    return x, x[:, :4] @ rng.standard_normal((4, 5)) + 3 * rng.standard_normal((n, 5))


def test_mean_squared_cca_is_the_known_value() -> None:
    assert mean_squared_cca(X, Y) == pytest.approx(0.8842402172421732, rel=1e-12)
    legacy = np.random.RandomState(1337)
    x = legacy.randn(100, 10)
    y = legacy.randn(100, 10) + x
    assert mean_squared_cca(x, y) == pytest.approx(0.5453963321908326, rel=1e-12)


def test_correlations_agree_with_statsmodels() -> None:
    cancorr = pytest.importorskip("statsmodels.multivariate.cancorr")
    x, y = _alike()
    rho = cancorr.CanCorr(y, x).cancorr
    assert len(rho) == 5
    assert mean_squared_cca(x, y) == pytest.approx((rho**2).mean(), rel=1e-10)
    assert svcca(x, y, variance=1) == pytest.approx(rho.mean(), rel=1e-10)


def test_svcca_agrees_with_scikit_learn_and_statsmodels() -> None:
    cancorr = pytest.importorskip("statsmodels.multivariate.cancorr")
    decomposition = pytest.importorskip("sklearn.decomposition")
    x, y = _alike()
    kept = [decomposition.PCA(0.9).fit_transform(z) for z in (x, y)]
    assert kept[0].shape[1] < 6
    rho = cancorr.CanCorr(kept[1], kept[0]).cancorr
    assert svcca(x, y, variance=0.9) == pytest.approx(rho.mean(), rel=1e-10)


def test_pwcca_agrees_with_canonical_variates_by_eigenvectors() -> None:
    x, y = _alike()
    for a, b in ((x, y), (y, x)):
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        saa, sbb, sab = a.T @ a, b.T @ b, a.T @ b
        square, vectors = np.linalg.eig(np.linalg.solve(saa, sab) @ np.linalg.solve(sbb, sab.T))
        order = np.argsort(-square.real)[:5]
        variates = a @ vectors.real[:, order]
        variates /= np.linalg.norm(variates, axis=0)
        weight = np.abs(variates.T @ a).sum(axis=1)
        expected = (weight * np.sqrt(square.real[order])).sum() / weight.sum()
        assert pwcca(a, b) == pytest.approx(expected, rel=1e-8)
    assert abs(pwcca(x, y) - pwcca(y, x)) > 0.01


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_and_offset_are_ignored(
    measure: Callable[[NDArray, NDArray], float],
) -> None:
    x, y = _alike()
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
    found = measure(x, y)
    assert 0.1 < found < 0.9
    assert measure(x, 7 * y @ q + 30) == pytest.approx(found, rel=1e-9)
    assert measure(x, x) == pytest.approx(1)


def test_any_linear_map_is_ignored_but_by_svcca_and_by_weights_of_the_first() -> None:
    x, y = _alike()
    any_map = np.random.default_rng(1).standard_normal((6, 6)) @ np.diag([1, 1, 1, 1, 1, 30])
    assert mean_squared_cca(x @ any_map, y) == pytest.approx(mean_squared_cca(x, y), rel=1e-9)
    assert pwcca(y, x @ any_map) == pytest.approx(pwcca(y, x), rel=1e-9)
    assert abs(pwcca(x @ any_map, y) - pwcca(x, y)) > 0.01
    assert abs(svcca(x @ any_map, y, variance=0.9) - svcca(x, y, variance=0.9)) > 0.01


def test_independent_representations_score_features_over_tokens() -> None:
    rng = np.random.default_rng(0)
    found = [
        mean_squared_cca(rng.standard_normal((101, 20)), rng.standard_normal((101, 10)))
        for _ in range(50)
    ]
    assert np.mean(found) == pytest.approx(20 / 100, abs=0.01)


def test_features_that_are_sums_of_others_change_nothing() -> None:
    x, y = _alike()
    assert mean_squared_cca(np.c_[x, x[:, :2]], y) == pytest.approx(mean_squared_cca(x, y))


@pytest.mark.parametrize("measure", MEASURES)
def test_too_few_tokens_and_other_bad_input_are_refused(
    measure: Callable[[NDArray, NDArray], float],
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20, 30))
    with pytest.raises(ValueError, match=r"directions of 20 tokens"):
        measure(x, y)
    with pytest.raises(ValueError, match="19 and 20 tokens"):
        measure(x, y[1:])
    with pytest.raises(ValueError, match="same for all"):
        measure(np.ones((20, 2)), y)
    with pytest.raises(ValueError, match="not finite"):
        measure(np.full((20, 2), np.nan), y)
    with pytest.raises(ValueError, match="share of variance is 0"):
        svcca(x, y, variance=0)

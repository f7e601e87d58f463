import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import cross_products as cp
from analyses.statistics.alignment import procrustes
from analyses.statistics.resampling import jackknife
from analyses.statistics.similarity import linear_cka
from analyses.statistics.unit_cka import cka

UNIT = np.random.default_rng(5).permutation(np.repeat(np.arange(30), [4] * 20 + [7] * 10))


def _two(seed: int = 0) -> tuple[NDArray, NDArray]:
    """Five and seven features of the same 150 tokens, which share three."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((len(UNIT), 3))
    own = (rng.standard_normal((len(UNIT), p)) for p in (2, 4))
    return tuple(np.concatenate([shared, of_one], axis=1) + 3 for of_one in own)  # type: ignore[return-value]


def _represented(*arrays: NDArray, n_units: int = 30) -> list[cp.Representation]:
    return [cp.representation(x, UNIT, n_units=n_units) for x in arrays]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_estimates_are_those_of_measures_that_delete_nothing(dtype: type) -> None:
    x, y = (z.astype(dtype) for z in _two())
    a, b = _represented(x, y)
    own, cross = [cp.squared_norm(z, z) for z in (a, b)], cp.squared_norm(a, b)
    assert cka(cross, *own).estimate == pytest.approx(linear_cka(x, y), rel=1e-5)
    debiased = [cp.debiased(z, z, norm) for z, norm in ((a, own[0]), (b, own[1]))]
    found = cka(cp.debiased(a, b, cross), *debiased).estimate
    assert found == pytest.approx(linear_cka(x, y, debiased=True), rel=1e-5)
    assert cp.procrustes(a, b).estimate == pytest.approx(procrustes(x, y), rel=1e-5)


def test_norms_without_a_unit_are_those_of_the_other_tokens() -> None:
    x, y = (z - z.mean(axis=0) for z in _two())
    a, b = _represented(x, y)
    found = cp.squared_norm(a, b)
    debiased = cp.debiased(a, b, found)
    for u in range(30):
        left, right = x[u != UNIT], y[u != UNIT]
        square = np.linalg.norm(left.T @ right) ** 2
        assert found.deleted[u] == pytest.approx(square, rel=1e-10)
        n, r, s = len(left), (left**2).sum(axis=1), (right**2).sum(axis=1)
        square += -n / (n - 2) * (r @ s) + r.sum() * s.sum() / ((n - 1) * (n - 2))
        assert debiased.deleted[u] == pytest.approx(square, rel=1e-10)


def test_first_order_deletion_gives_the_error_of_procrustes() -> None:
    x, y = _two()
    a, b = _represented(x, y)
    found = cp.procrustes(a, b)
    exact = np.array([procrustes(x[u != UNIT], y[u != UNIT]) for u in range(30)])
    assert np.corrcoef(found.deleted, exact)[0, 1] > 0.98
    errors = [jackknife(found.estimate, d).standard_error for d in (found.deleted, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_what_is_the_same_stays_the_same_without_any_unit() -> None:
    (x,) = _represented(_two()[0])
    np.testing.assert_allclose(cp.procrustes(x, x).deleted, 1, rtol=1e-12)
    norm = cp.squared_norm(x, x)
    np.testing.assert_allclose(cka(norm, norm, norm).deleted, 1, rtol=1e-12)


def test_a_unit_without_a_token_changes_nothing() -> None:
    a, b = _represented(*_two(), n_units=32)
    for found in (cp.squared_norm(a, b), cp.procrustes(a, b)):
        np.testing.assert_allclose(found.deleted[30:], found.estimate, rtol=1e-12)
        assert np.abs(found.deleted[:30] - found.estimate).min() > 0


def test_a_constant_representation_is_refused() -> None:
    with pytest.raises(ValueError, match="same for all"):
        _represented(np.ones((len(UNIT), 3)))

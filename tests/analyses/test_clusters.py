import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analyses.statistics.clusters import (
    cluster_stability,
    curve_clusters,
    nearest,
    standardized,
)

X = np.linspace(-1, 1, 9)
SHAPES = np.stack([-np.tanh(4 * (X + 0.6)), -np.tanh(4 * (X - 0.6)), X**2 - X, X])


def _planted(n: int, *, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Curves of four shapes with levels and sizes of their own, and which shape each has."""
    rng = np.random.default_rng(0)
    shape = rng.integers(0, 4, n)
    size, level = rng.uniform(1, 5, (n, 1)), rng.uniform(-3, 3, (n, 1))
    curves = level + size * (SHAPES[shape] + noise * rng.standard_normal((n, len(X))))
    return curves, shape


def test_planted_shapes_are_found_whatever_their_level_and_size() -> None:
    curves, shape = _planted(400)
    found = curve_clusters(curves, n_clusters=4, rng=np.random.default_rng(0))
    assert adjusted_rand_score(found.label, shape) > 0.95
    assert found.centre.shape == (4, len(X))


def test_early_falls_come_first() -> None:
    curves, shape = _planted(400)
    found = curve_clusters(curves, n_clusters=4, rng=np.random.default_rng(0))
    label = [np.bincount(found.label[shape == s]).argmax() for s in range(4)]
    assert label[0] == 0
    assert label[0] < label[1] < label[3]


def test_same_seed_gives_the_same_clusters() -> None:
    curves, _ = _planted(200)
    a, b = (curve_clusters(curves, n_clusters=3, rng=np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(a.label, b.label)


def test_fit_to_a_sample_gives_every_curve_a_cluster() -> None:
    curves, shape = _planted(2000)
    rng = np.random.default_rng(0)
    found = curve_clusters(curves, n_clusters=4, most_fitted=300, rng=rng)
    assert found.label.shape == (2000,)
    assert adjusted_rand_score(found.label, shape) > 0.95


def test_nearest_centre_agrees_with_a_slow_search() -> None:
    curves, _ = _planted(50)
    centre = standardized(SHAPES)
    slow = [
        min(range(4), key=lambda k: float(((s - centre[k]) ** 2).sum()))
        for s in standardized(curves)
    ]
    assert nearest(curves, centre).tolist() == slow


def test_planted_shapes_are_stable_and_clusters_of_noise_are_not() -> None:
    curves, _ = _planted(400)
    unit = np.repeat(np.arange(20), 20)
    rng = np.random.default_rng(0)
    planted = cluster_stability(curves, unit, n_clusters=4, n_splits=3, rng=rng)
    noise = np.random.default_rng(1).standard_normal(curves.shape)
    nothing = cluster_stability(noise, unit, n_clusters=4, n_splits=3, rng=rng)
    sampled = cluster_stability(
        curves, unit, n_clusters=4, n_splits=2, most_used=300, rng=np.random.default_rng(2)
    )
    assert (planted > 0.95).all()
    assert (sampled > 0.9).all()
    assert (nothing < 0.5).all()


def test_half_with_too_few_curves_has_no_stability() -> None:
    curves, _ = _planted(60)
    unit = np.repeat(np.arange(2), [50, 10])
    rng = np.random.default_rng(0)
    assert np.isnan(cluster_stability(curves, unit, n_clusters=4, n_splits=2, rng=rng)).all()


def test_constant_curve_has_the_shape_zero() -> None:
    np.testing.assert_array_equal(standardized(np.full((2, 5), 3.0)), np.zeros((2, 5)))
    spread = standardized(np.random.default_rng(0).standard_normal((3, 5)))
    np.testing.assert_allclose(spread.std(axis=1), 1)


def test_too_few_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 40 curves, there are 39"):
        curve_clusters(np.zeros((39, 5)), n_clusters=4, rng=np.random.default_rng(0))

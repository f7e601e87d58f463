from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import alignment
from analyses.statistics.alignment import linear_r2, mutual_knn, procrustes, rsa


def _alike(n: int = 80, width: int = 7) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 5)) * [3, 2, 1, 1, 0.5] + 4
    return x, x @ rng.standard_normal((5, width)) + 2 * rng.standard_normal((n, width))


def _rotation(width: int) -> NDArray:
    return np.linalg.qr(np.random.default_rng(1).standard_normal((width, width)))[0]


def test_procrustes_of_the_published_example() -> None:
    legacy = np.random.RandomState(1337)
    x = legacy.randn(100, 10)
    y = legacy.randn(100, 10) + x
    assert procrustes(x, y) == pytest.approx(0.7362553106058285, rel=1e-12)


def test_procrustes_agrees_with_scipy() -> None:
    from scipy.spatial import procrustes as scipys

    x, y = _alike(width=5)
    # after the best scale too, the squared distance left is 1 - ||X'Y||_*²
    assert 1 - procrustes(x, y) ** 2 == pytest.approx(scipys(x, y)[2], rel=1e-10)


def test_procrustes_of_independent_gaussians() -> None:
    rng = np.random.default_rng(0)
    found = [procrustes(*rng.standard_normal((2, 2000, 40))) for _ in range(5)]
    assert np.mean(found) == pytest.approx(8 / (3 * np.pi) * np.sqrt(40 / 2000), rel=0.03)


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
def test_rsa_agrees_with_scipy(dissimilarity: alignment.Dissimilarity) -> None:
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    x, y = _alike()
    pairs = [pdist(z - z.mean(axis=0), dissimilarity) for z in (x, y)]
    expected = spearmanr(*pairs).statistic
    assert rsa(x, y, dissimilarity=dissimilarity) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("grouped", [False, True])
def test_mutual_knn_agrees_with_scikit_learn(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    monkeypatch.setattr(alignment, "_BLOCK_ROWS", 32)
    x, y = _alike()
    unit = np.arange(80) // (8 if grouped else 1)
    near = []
    for z in (x, y):
        cosine = pairwise.cosine_similarity(z - z.mean(axis=0))
        cosine[unit[:, None] == unit] = -2
        near.append([set(row[:10]) for row in np.argsort(-cosine, axis=1)])
    expected = np.mean([len(a & b) / 10 for a, b in zip(*near, strict=True)])
    found = mutual_knn(x, y, k=10, unit=unit if grouped else None)
    assert found == pytest.approx(expected, rel=1e-12)


def test_mutual_knn_of_independent_tokens_is_chance() -> None:
    rng = np.random.default_rng(0)
    found = [mutual_knn(*rng.standard_normal((2, 201, 8)), k=20) for _ in range(40)]
    assert abs(np.mean(found) - 20 / 200) < 3 * np.std(found) / np.sqrt(40)


def test_neighbours_within_a_text_are_shared_by_anything_and_left_out_by_unit() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(30), 10)
    within, between = [], []
    for _ in range(10):
        x, y = (
            rng.standard_normal((30, 16))[unit] + 0.5 * rng.standard_normal((300, 16))
            for _ in range(2)
        )
        within.append(mutual_knn(x, y, k=9))
        between.append(mutual_knn(x, y, k=9, unit=unit))
    assert np.mean(within) > 0.9
    # 9 of the 290 tokens of other units
    assert abs(np.mean(between) - 9 / 290) < 3 * np.std(between) / np.sqrt(10)


def test_linear_r2_agrees_with_scikit_learn() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = _alike()
    unit = np.random.default_rng(1).integers(0, 16, 80)
    unit = np.unique(unit, return_inverse=True)[1]
    folds = model_selection.PredefinedSplit(unit % 5)
    for a, b in ((x, y), (y, x)):
        predicted, mean = (
            model_selection.cross_val_predict(model, inputs, b, cv=folds)
            for model, inputs in (
                (linear_model.LinearRegression(), a),
                (linear_model.LinearRegression(), np.zeros((80, 1))),
            )
        )
        expected = 1 - ((b - predicted) ** 2).sum() / ((b - mean) ** 2).sum()
        assert linear_r2(a, b, unit=unit) == pytest.approx(expected, rel=1e-9)


def test_linear_r2_is_one_for_a_linear_map_below_zero_for_noise_and_not_symmetric() -> None:
    x, _ = _alike()
    y = x @ np.random.default_rng(2).standard_normal((5, 9))
    assert linear_r2(x, y) == pytest.approx(1)
    assert linear_r2(x[:, :2], x) < 0.95
    assert linear_r2(x, x[:, :2]) == pytest.approx(1)
    rng = np.random.default_rng(0)
    noise = [linear_r2(*rng.standard_normal((2, 100, 20))) for _ in range(20)]
    # each of 20 weights adds 1/(m - p - 1) of the variance to the error, m = 80 of 100 tokens
    assert np.mean(noise) == pytest.approx(-20 / (80 - 20 - 2), abs=0.05)


def test_r2_across_tokens_of_a_text_is_fooled_by_the_text_and_by_unit_is_not() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(20), 50)
    x, y = (
        rng.standard_normal((20, 15))[unit] + 0.3 * rng.standard_normal((1000, 15))
        for _ in range(2)
    )
    assert linear_r2(x, y) > 0.3
    assert linear_r2(x, y, unit=unit) < 0


@pytest.mark.parametrize(
    "measure", [procrustes, partial(rsa, dissimilarity="euclidean"), mutual_knn, linear_r2]
)
def test_rotation_scale_and_offset_are_ignored(measure) -> None:  # type: ignore[no-untyped-def]
    x, y = _alike()
    found = measure(x, y)
    assert 0.1 < found < 0.95
    assert measure(3 * x @ _rotation(5) + 9, y) == pytest.approx(found, rel=1e-9)
    assert measure(x, 3 * y @ _rotation(7) + 9) == pytest.approx(found, rel=1e-9)
    assert measure(x, x @ _rotation(5)) == pytest.approx(1)


def test_a_linear_map_is_ignored_only_by_r2_in_what_predicts() -> None:
    x, y = _alike()
    stretched = x @ np.diag([1, 1, 1, 1, 40])
    assert linear_r2(stretched, y) == pytest.approx(linear_r2(x, y), rel=1e-9)
    for measure in (procrustes, rsa, mutual_knn, lambda a, b: linear_r2(b, a)):
        assert abs(measure(stretched, y) - measure(x, y)) > 0.03


def test_rsa_by_correlation_depends_on_the_basis() -> None:
    # Pearson's r over features takes away their mean, which is along one direction
    x, y = _alike()
    assert abs(rsa(x @ _rotation(5), y) - rsa(x, y)) > 0.01
    assert rsa(3 * x + 9, y) == pytest.approx(rsa(x, y))


def test_an_outlier_moves_procrustes_and_not_mutual_neighbours() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 300, 20))
    far = rng.standard_normal(20) * 200
    x[0], y[0] = far, far
    assert procrustes(x, y) > 0.95
    assert mutual_knn(x, y, k=10) < 0.1


def test_rsa_of_pairs_that_are_all_alike_is_nan() -> None:
    x, _ = _alike(n=6)
    assert np.isnan(rsa(np.eye(6), x, dissimilarity="euclidean"))


@pytest.mark.parametrize("measure", [procrustes, rsa, partial(mutual_knn, k=2), linear_r2])
def test_bad_input_is_refused(measure) -> None:  # type: ignore[no-untyped-def]
    x, y = _alike()
    with pytest.raises(ValueError, match="79 and 80 tokens"):
        measure(x, y[1:])
    with pytest.raises(ValueError, match="at least 4"):
        measure(x[:3], y[:3])
    with pytest.raises(ValueError, match="same for all"):
        measure(x, np.full((80, 3), 0.7))
    y[1, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        measure(x, y)


def test_options_that_cannot_be_are_refused() -> None:
    x, y = _alike()
    with pytest.raises(ValueError, match="'cosine' is not known"):
        rsa(x, y, dissimilarity="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token 7 has the same value of all features"):
        rsa(np.insert(x - x.mean(axis=0), 7, 0, axis=0), np.insert(y, 7, 0, axis=0))
    with pytest.raises(ValueError, match=r"80 neighbours .* 79 that may"):
        mutual_knn(x, y, k=80)
    with pytest.raises(ValueError, match=r"shape \(79,\)"):
        mutual_knn(x, y, unit=np.zeros(79, dtype=int))
    with pytest.raises(ValueError, match="5 folds of 3 units"):
        linear_r2(x, y, unit=np.arange(80) % 3)

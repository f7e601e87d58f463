from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import representations
from analyses.statistics.alignment import mutual_knn
from analyses.statistics.minibatch_cka import minibatch_cka
from analyses.statistics.similarity import linear_cka, linear_cka_table, rbf_cka

# two representations of six tokens, exact values by rational arithmetic
X = np.array([[1, 0], [2, 1], [0, 3], [4, 1], [1, 1], [3, 5]], dtype=float)
Y = np.array([[2, 1, 0], [0, 1, 1], [1, 4, 2], [3, 0, 1], [1, 1, 1], [5, 2, 6]], dtype=float)


def _demo() -> tuple[NDArray, NDArray]:
    """The example that Kornblith et al. (2019) published values of."""
    legacy = np.random.RandomState(1337)
    x = legacy.randn(100, 10)
    return x, legacy.randn(100, 10) + x


def _alike(seed: int = 0, *, n: int = 60) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5)) * [3, 2, 1, 1, 0.5] + 4
    return x, x @ rng.standard_normal((5, 7)) + rng.standard_normal((n, 7))


def _rotation(rng: np.random.Generator, width: int) -> NDArray:
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def test_linear_cka_of_integers_is_exact() -> None:
    assert linear_cka(X, Y) == pytest.approx(5765 / np.sqrt(3667 * 11899), rel=1e-14)
    assert linear_cka(X, Y, debiased=True) == pytest.approx(0.7849326492878265, rel=1e-13)


def test_debiased_cka_below_zero_is_kept() -> None:
    x = np.array([[2, 0], [-2, 1], [2, 2], [2, -1], [1, 2], [0, 2]], dtype=float)
    y = np.array([[0, -2], [0, 1], [-1, 1], [0, 2], [-1, 1], [-2, -2]], dtype=float)
    assert linear_cka(x, y) == pytest.approx(0.08185645949000962)
    assert linear_cka(x, y, debiased=True) == pytest.approx(-0.3694636251100956)


def test_published_values() -> None:
    x, y = _demo()
    assert linear_cka(x, y) == pytest.approx(0.55761, abs=5e-6)
    assert linear_cka(x, y, debiased=True) == pytest.approx(0.51346, abs=5e-6)
    assert rbf_cka(x, y, bandwidth=0.5) == pytest.approx(0.65483, abs=5e-6)
    assert rbf_cka(x, y, bandwidth=0.5, debiased=True) == pytest.approx(0.4192767510220516)


@pytest.mark.parametrize(
    ("bandwidth", "debiased", "expected"),
    [
        (0.5, False, 0.9143436650538854),
        (1.0, False, 0.9037669213081848),
        (0.5, True, 0.4904358473113983),
    ],
)
def test_rbf_cka_of_integers(bandwidth: float, debiased: bool, expected: float) -> None:
    found = rbf_cka(X, Y, bandwidth=bandwidth, debiased=debiased)
    assert found == pytest.approx(expected, rel=1e-12)


def _centring(n: int) -> NDArray:
    return np.eye(n) - 1 / n


def test_biased_forms_agree_with_whole_kernel_matrices_of_scikit_learn() -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = _alike()
    h = _centring(len(x))

    def cka(k: NDArray, m: NDArray) -> float:
        def hsic(a: NDArray, b: NDArray) -> float:
            return float(np.trace(a @ h @ b @ h))

        return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))

    linear = cka(*(pairwise.linear_kernel(z) for z in (x, y)))
    assert linear_cka(x, y) == pytest.approx(linear, rel=1e-12)
    kernels = []
    for z in (x, y):
        median = np.median(pairwise.euclidean_distances(z, squared=True))
        kernels.append(pairwise.rbf_kernel(z, gamma=1 / (2 * 0.8**2 * median)))
    assert rbf_cka(x, y, bandwidth=0.8) == pytest.approx(cka(*kernels), rel=1e-10)


def test_debiased_form_is_minibatch_cka_of_one_batch() -> None:
    x, y = _alike()
    expected = minibatch_cka(x, y, batches=[np.arange(len(x))])
    assert linear_cka(x, y, debiased=True) == pytest.approx(expected, rel=1e-12)


def test_debiased_numerator_agrees_with_a_loop_over_quadruples() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 2))
    k, m = x @ x.T, y @ y.T
    total = count = 0.0
    for i, j, q, r in product(range(6), repeat=4):
        if len({i, j, q, r}) == 4:
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            count += 1
    own = [
        sum(
            g[i, j] * (g[i, j] + g[q, r] - 2 * g[i, q])
            for i, j, q, r in product(range(6), repeat=4)
            if len({i, j, q, r}) == 4
        )
        for g in (k, m)
    ]
    expected = total / np.sqrt(own[0] * own[1])
    assert linear_cka(x, y, debiased=True) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("debiased", [False, True])
def test_rotation_scale_and_offset_are_ignored_and_other_linear_maps_are_not(
    debiased: bool,
) -> None:
    x, y = _alike()
    rng = np.random.default_rng(1)
    moved = 3 * x @ _rotation(rng, 5) - 20
    for measure in (linear_cka, rbf_cka):
        found = measure(x, y, debiased=debiased)
        assert measure(moved, y, debiased=debiased) == pytest.approx(found, rel=1e-9)
        assert measure(x, moved, debiased=debiased) == pytest.approx(1)
        assert measure(y, x, debiased=debiased) == pytest.approx(found)
        mapped = x @ np.diag([1, 1, 1, 1, 20])
        assert abs(measure(mapped, y, debiased=debiased) - found) > 0.05


@pytest.mark.parametrize(("n", "n_draws"), [(16, 300), (32, 300)])
def test_unrelated_features_score_high_when_biased_and_nothing_when_debiased(
    n: int, n_draws: int
) -> None:
    rng = np.random.default_rng(0)
    biased, debiased = np.empty((2, n_draws))
    for i in range(n_draws):
        x, y = rng.standard_normal((2, n, 64), dtype=np.float32)
        biased[i], debiased[i] = (linear_cka(x, y, debiased=how) for how in (False, True))
    assert biased.mean() == pytest.approx(64 / (n + 64), abs=0.01)
    assert abs(debiased.mean()) < 3 * debiased.std() / np.sqrt(n_draws)
    assert abs(debiased.mean()) < 0.02


def test_debiased_rbf_cka_of_unrelated_features_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    draws = [rbf_cka(*rng.standard_normal((2, 40, 8)), debiased=True) for _ in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(200)
    assert rbf_cka(*rng.standard_normal((2, 40, 8))) > 0.3


def test_one_token_moved_far_away_changes_cka_of_two_that_are_else_the_same() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 20))
    for debiased in (False, True):
        moved = x.copy()
        moved[0] += 100
        assert linear_cka(x, x, debiased=debiased) == pytest.approx(1)
        assert linear_cka(x, moved, debiased=debiased) < 0.25
    assert mutual_knn(x, moved) > 0.9
    # an outlier that two unrelated representations share makes them alike
    y = rng.standard_normal((1000, 20))
    y[0] += 100
    assert linear_cka(moved, y) > 0.95


def test_half_of_the_tokens_moved_along_one_direction_loses_cka() -> None:
    # linear separability and all distances within each half stay as they are
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 20))
    moved = x.copy()
    moved[:250, 0] += 50
    assert linear_cka(x, moved, debiased=True) < 0.3


def test_low_precision_agrees_with_float64_far_from_the_origin() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 64)) + 30).astype(np.float16)
    y = (x[:, :32] - 30 + rng.standard_normal((400, 32))).astype(np.float16)
    for debiased in (False, True):
        exact = linear_cka(x.astype(np.float64), y.astype(np.float64), debiased=debiased)
        assert abs(linear_cka(x, y, debiased=debiased) - exact) < 1e-6


def test_table_holds_each_pair() -> None:
    x, y = _alike()
    z = np.random.default_rng(2).standard_normal((60, 3))
    for debiased in (False, True):
        table = linear_cka_table([x, y], [y, z, x], debiased=debiased)
        for i, j in np.ndindex(2, 3):
            found = linear_cka([x, y][i], [y, z, x][j], debiased=debiased)
            assert table[i, j] == pytest.approx(found, rel=1e-12)
        same = linear_cka_table([x, y, z], [x, y, z], debiased=debiased)
        np.testing.assert_allclose(linear_cka_table([x, y, z], debiased=debiased), same, rtol=1e-12)


def test_bad_input_is_refused() -> None:
    x, y = _alike()
    with pytest.raises(ValueError, match="58 and 60 tokens"):
        linear_cka(x, y[:58])
    with pytest.raises(ValueError, match="58 and 60 tokens"):
        linear_cka_table([x, y], [x[:58]])
    with pytest.raises(ValueError, match="at least 4 tokens, there are 3"):
        rbf_cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="same for all"):
        linear_cka(x, np.full((60, 3), 0.3))
    with pytest.raises(ValueError, match="bandwidth is 0"):
        rbf_cka(x, y, bandwidth=0)
    copies = np.concatenate([np.zeros((59, 5)), np.ones((1, 5))])
    with pytest.raises(ValueError, match="most are the same"):
        rbf_cka(copies, y)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"not finite \(1 values, nan in row 3\)"):
        linear_cka(x, y)
    with pytest.raises(ValueError, match="dimensions"):
        representations.paired(x[None], y[None])

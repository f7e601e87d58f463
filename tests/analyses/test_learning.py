import numpy as np
import pytest
from scipy.interpolate import make_smoothing_spline

from analyses.statistics.learning import log_step, milestones, smoothing_matrix

STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 50, 64, 100, 128, 150, 200])
X = log_step(STEPS)
CHANCE = 8.0


def _noisy(n_curves: int) -> np.ndarray:
    """Curves (step, curve) that fall from chance at various times, with noise."""
    rng = np.random.default_rng(0)
    middle, height = rng.uniform(1, 7, n_curves), rng.uniform(-1, 7, n_curves)
    fall = 1 / (1 + np.exp(-2 * (X[:, None] - middle)))
    return CHANCE - height * fall + 0.3 * rng.standard_normal((len(X), n_curves))


def test_log_step_starts_at_zero_and_adds_one_where_training_doubles() -> None:
    np.testing.assert_allclose(log_step(np.array([0, 1, 3, 7, 15])), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("penalty", [0.01, 0.3, 20.0])
def test_smoother_agrees_with_scipy(penalty: float) -> None:
    curves = _noisy(20)
    ours = smoothing_matrix(X, penalty=penalty) @ curves
    scipys = [make_smoothing_spline(X, curve, lam=penalty)(X) for curve in curves.T]
    np.testing.assert_allclose(ours.T, scipys, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 13])
def test_smoother_leaves_straight_lines_and_without_penalty_everything(n: int) -> None:
    x = X[:n]
    matrix = smoothing_matrix(x, penalty=0.5)
    np.testing.assert_allclose(matrix @ (3 - 2 * x), 3 - 2 * x, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(smoothing_matrix(x, penalty=0.0), np.eye(n), atol=1e-12)


def test_penalty_takes_degrees_of_freedom_from_all_points_down_to_a_line() -> None:
    freedom = [np.trace(smoothing_matrix(X, penalty=p)) for p in (0, 0.01, 0.1, 1, 10, 1e6)]
    assert freedom[0] == pytest.approx(len(X))
    assert freedom[-1] == pytest.approx(2, abs=1e-3)
    assert (np.diff(freedom) < 0).all()


def test_age_of_a_straight_fall_is_half_way_down() -> None:
    curve = np.linspace(CHANCE, 2.0, 13)[:, None]
    x = np.arange(13.0)
    found = milestones(curve, x, chance=CHANCE)
    assert found.age == pytest.approx([6.0])
    assert found.n_crossings.tolist() == [1]
    assert found.forgotten == pytest.approx([0.0])
    assert not found.known_at_start.any()


def _slow(curve: np.ndarray, x: np.ndarray, *, chance: float, margin: float) -> float:
    """Age of one curve by walking along it in small steps."""
    if chance - curve[-1] < margin:
        return float("nan")
    fine = np.linspace(x[0], x[-1], 200_001)
    at = np.interp(fine, x, curve)
    return float(fine[np.flatnonzero(at <= (chance + curve[-1]) / 2)[0]])


def test_age_agrees_with_a_walk_along_each_curve() -> None:
    curves = _noisy(200)
    found = milestones(curves, X, chance=CHANCE, margin=0.8)
    expected = [_slow(curve, X, chance=CHANCE, margin=0.8) for curve in curves.T]
    np.testing.assert_allclose(found.age, expected, atol=1e-4)
    assert 0.5 < np.isfinite(found.age).mean() < 1
    np.testing.assert_array_equal(found.learned, np.isfinite(expected))


def test_token_that_ends_less_than_the_margin_below_chance_has_no_age() -> None:
    end = CHANCE - np.array([0.99, 1.01, -2.0])
    curve = np.linspace(np.full(3, CHANCE), end, len(X))
    found = milestones(curve, X, chance=CHANCE, margin=1.0)
    assert np.isfinite(found.age).tolist() == [False, True, False]
    assert found.n_crossings.tolist() == [0, 1, 0]
    assert found.learned.tolist() == [False, True, False]


def test_every_return_to_half_way_counts_as_a_crossing() -> None:
    down_up_down = np.array([8, 2, 8, 2, 8, 2, 1.0])
    starts_known = np.array([2, 2, 8, 1, 1, 1, 1.0])
    found = milestones(np.stack([down_up_down, starts_known], axis=1), X[:7], chance=CHANCE)
    assert found.n_crossings.tolist() == [3, 2]
    assert found.known_at_start.tolist() == [False, True]
    # half-way to 1 is 4.5, which a fall from 8 to 2 reaches after 3.5 of 6
    assert found.age == pytest.approx([3.5 / 6 * (X[1] - X[0]), X[0]])


def test_forgetting_is_the_rise_from_the_lowest_loss_to_the_end() -> None:
    forgets, loses, never = [8, 4, 2, 3.5], [8, 5, 4, 9], [8, 9, 9, 9]
    found = milestones(np.array([forgets, loses, never]).T, X[:4], chance=CHANCE)
    np.testing.assert_allclose(found.forgotten, [1.5, 5, np.nan])
    np.testing.assert_allclose(found.forgotten_share, [1.5 / 6, 5 / 4, np.nan])
    assert found.ever_learned.tolist() == [True, True, False]
    assert found.learned.tolist() == [True, False, False]


def test_order_of_tokens_and_a_common_shift_of_losses_do_not_matter() -> None:
    curves = _noisy(50)
    found = milestones(curves, X, chance=CHANCE)
    order = np.random.default_rng(1).permutation(50)
    moved = milestones(curves[:, order] + 3, X, chance=CHANCE + 3)
    np.testing.assert_allclose(moved.age, found.age[order])
    np.testing.assert_allclose(moved.forgotten, found.forgotten[order])
    scaled = milestones(2 * curves, X, chance=2 * CHANCE, margin=2.0)
    np.testing.assert_allclose(scaled.age, found.age)
    np.testing.assert_allclose(scaled.forgotten_share, found.forgotten_share)


def test_smoothing_brings_noisy_ages_nearer_to_the_planted_ones() -> None:
    rng = np.random.default_rng(2)
    middle = rng.uniform(2, 6, 500)
    truth = CHANCE - 5 / (1 + np.exp(-1.5 * (X[:, None] - middle)))
    noisy = truth + 0.6 * rng.standard_normal(truth.shape)
    planted = milestones(truth, X, chance=CHANCE).age
    raw = milestones(noisy, X, chance=CHANCE)
    smooth = milestones(smoothing_matrix(X, penalty=0.1) @ noisy, X, chance=CHANCE)
    error = {name: np.sqrt(np.nanmean((m.age - planted) ** 2)) for name, m in
             (("raw", raw), ("smooth", smooth))}  # fmt: skip
    assert error["smooth"] < 0.9 * error["raw"]
    assert (smooth.n_crossings > 1).sum() < 0.2 * (raw.n_crossings > 1).sum()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="x has to increase"):
        smoothing_matrix(np.array([0.0, 1.0, 1.0]), penalty=1.0)
    with pytest.raises(ValueError, match="penalty is -1"):
        smoothing_matrix(X, penalty=-1.0)
    with pytest.raises(ValueError, match="margin is 0"):
        milestones(_noisy(2), X, chance=CHANCE, margin=0.0)

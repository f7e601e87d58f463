"""Phases of a curve over training: planted ones, the search for turns, and what is left of luck."""

import numpy as np
import pytest

from analyses.statistics.bands import simultaneous
from analyses.statistics.phases import PHASES, Phases, find_phases, turning_points
from analyses.statistics.resampling import jackknife

FOUR = np.array([0.34, 0.34, 0.33, 0.2, 0.06, 0.15, 0.3, 0.4, 0.38, 0.3])


def observed(
    curve: np.ndarray, *, n_units: int = 30, noise: float = 0.02, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A curve as the mean over units of text that share its shape, and without each unit."""
    units = curve * (1 + 0.2 * rng.standard_normal((n_units, 1)))
    units = units + noise * rng.standard_normal((n_units, len(curve)))
    return units.mean(axis=0), (units.sum(axis=0) - units) / (n_units - 1)


def phases_of(curve: np.ndarray, *, noise: float = 0.02) -> Phases:
    rng = np.random.default_rng(0)
    return find_phases(*observed(curve, noise=noise, rng=rng), n_resamples=300, rng=rng)


def test_turns_are_those_of_a_search_through_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        y = rng.standard_normal(rng.integers(2, 9))
        n = len(y)
        largest = max(
            y[s] - 2 * y[t] + 2 * y[p] - y[-1]
            for s in range(n) for t in range(s, n) for p in range(t, n)
        )  # fmt: skip
        start, trough, peak = turning_points(y, margin=0)
        assert start <= trough <= peak
        assert y[start] - 2 * y[trough] + 2 * y[peak] - y[-1] == pytest.approx(largest)


@pytest.mark.parametrize(
    ("curve", "turns"),
    [
        ([3.0, 2.0, 1.0, 0.0], (0, 3, 3)),
        ([0.0, 1.0, 2.0], (0, 0, 2)),
        ([1.0, 1.0, 0.0, 2.0, 1.0], (1, 2, 3)),
        ([1.0, 1.0, 1.0], (2, 2, 2)),
    ],
)
def test_turns_of_simple_curves(curve: list[float], turns: tuple[int, int, int]) -> None:
    assert turning_points(np.array(curve), margin=0) == turns


def test_four_planted_phases_are_seen_where_they_are() -> None:
    phases = phases_of(FOUR, noise=0.005)
    assert phases.verdict.tolist() == ["seen"] * len(PHASES)
    assert phases.start.tolist() == [0, 2, 4, 7]
    assert phases.end.tolist() == [2, 4, 7, 9]
    low, high = phases.ci.T
    assert ((low < phases.change) & (phases.change < high)).all()
    np.testing.assert_allclose(phases.change[1:], [-0.27, 0.34, -0.1], atol=0.03)


def test_a_curve_that_only_falls_has_no_divergence_and_no_reconvergence() -> None:
    phases = phases_of(np.array([0.5, 0.4, 0.3, 0.2, 0.1]), noise=0.002)
    assert phases.verdict.tolist() == ["not seen", "seen", "not seen", "not seen"]


def test_a_curve_that_ends_at_its_peak_is_not_seen_to_reconverge() -> None:
    assert phases_of(FOUR[:8], noise=0.005).verdict[3] == "not seen"


def test_what_is_smaller_than_the_noise_of_the_text_cannot_be_told() -> None:
    phases = phases_of(FOUR, noise=0.5)
    there = phases.start < phases.end
    assert set(phases.verdict[there]) == {"cannot be told"}
    assert there.sum() >= 3


def test_intervals_hold_for_the_changes_between_all_pairs_of_steps_at_once() -> None:
    curve, deleted = observed(FOUR, rng=np.random.default_rng(0))
    phases = find_phases(curve, deleted, n_resamples=200, rng=np.random.default_rng(1))
    before, after = np.triu_indices(len(curve), k=1)
    pairs = jackknife(curve[after] - curve[before], deleted[:, after] - deleted[:, before])
    band, _ = simultaneous(pairs, n_resamples=200, rng=np.random.default_rng(1))
    expected = dict(zip(zip(before, after, strict=True), band, strict=True))
    for start, end, found in zip(phases.start, phases.end, phases.ci, strict=True):
        np.testing.assert_allclose(found, expected[start, end])


def test_scale_of_the_curve_does_not_matter() -> None:
    curve, deleted = observed(FOUR, rng=np.random.default_rng(0))
    plain, scaled = (
        find_phases(k * curve, k * deleted, n_resamples=200, rng=np.random.default_rng(1))
        for k in (1, 1000)
    )
    assert scaled.verdict.tolist() == plain.verdict.tolist()
    np.testing.assert_allclose(scaled.ci, 1000 * plain.ci)


def test_a_curve_without_phases_hardly_ever_shows_one_though_its_turns_are_searched_for() -> None:
    """Negative control: intervals for the chosen steps alone see a rise in nearly half."""
    rng = np.random.default_rng(0)
    seen = naive = 0
    for _ in range(100):
        curve, deleted = observed(np.full(12, 0.3), rng=rng)
        phases = find_phases(curve, deleted, n_resamples=200, rng=rng)
        start, end = phases.start[2], phases.end[2]
        alone = jackknife(curve[end] - curve[start], deleted[:, end] - deleted[:, start])
        seen += "seen" in phases.verdict[1:]
        naive += alone.ci[0] > 0
    assert seen <= 8
    assert naive > 35

"""Ensemble gain: what is known by hand, independent implementations, and the report."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.special import logsumexp

from analyses import ensemble_gain as analysis
from analyses.ensemble_gain import ensemble_gain
from analyses.statistics.ensemble import ensemble_gain as token_gain
from analyses.statistics.ensemble import gain_sums
from analyses.statistics.pairs import pair_indices

TIMES = "\N{MULTIPLICATION SIGN}"
LN2 = np.log(2)


def test_models_that_lose_alike_gain_nothing() -> None:
    loss = np.random.default_rng(0).gamma(2.0, 2.0, 50)
    assert (token_gain(loss, loss) == 0).all()


@pytest.mark.parametrize(
    ("p", "q", "gain"),
    [
        (0.5, 0.25, np.log(0.375) - np.log(0.125) / 2),
        (1.0, 0.25, np.log(1.25)),
        (0.8, 0.2, np.log(1.25)),
    ],
)
def test_two_probabilities_gain_the_log_of_their_arithmetic_over_their_geometric_mean(
    p: float, q: float, gain: float
) -> None:
    assert token_gain(-np.log(p), -np.log(q)) == pytest.approx(gain, rel=1e-13)


def test_gain_is_that_of_logsumexp() -> None:
    losses = np.random.default_rng(0).gamma(2.0, 2.0, (2, 1000))
    expected = losses.mean(axis=0) + logsumexp(-losses, axis=0) - LN2
    np.testing.assert_allclose(token_gain(*losses), expected, atol=1e-14)


def test_gain_stands_between_knowing_the_better_model_and_ln_2_less() -> None:
    first, second = np.random.default_rng(0).gamma(2.0, 3.0, (2, 1000))
    oracle = np.abs(first - second) / 2
    gain = token_gain(first, second)
    assert ((gain <= oracle) & (gain >= oracle - LN2) & (gain >= 0)).all()
    assert token_gain(0.0, 2000.0) == pytest.approx(1000 - LN2, rel=1e-15)
    assert token_gain(1e5, 1e5 + 3) == pytest.approx(float(token_gain(0, 3)))


def test_a_small_difference_gains_an_eighth_of_its_square() -> None:
    for gap in (1e-6, 1e-3):
        assert token_gain(5.0, 5.0 + gap) == pytest.approx(gap**2 / 8, rel=1e-3)


def test_gain_depends_on_the_difference_alone_and_is_symmetric() -> None:
    first, second = np.random.default_rng(0).gamma(2.0, 2.0, (2, 100))
    np.testing.assert_allclose(token_gain(second, first), token_gain(first, second))
    np.testing.assert_allclose(token_gain(first + 4, second + 4), token_gain(first, second))


def test_sums_over_units_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    loss, unit = rng.gamma(2.0, 2.0, (4, 30)).astype("float32"), rng.permutation(30) % 7
    sums = gain_sums(loss, unit)
    for d in range(7):
        for i in range(4):
            for j in range(4):
                each = [
                    float(token_gain(loss[i, t], loss[j, t])) for t in range(30) if unit[t] == d
                ]
                assert sums[d, i, j] == pytest.approx(sum(each), abs=1e-12)


@pytest.mark.parametrize("lost", [np.inf, np.nan])
def test_a_model_with_a_loss_that_is_not_finite_is_missing_in_its_pairs_alone(lost: float) -> None:
    loss = np.random.default_rng(0).gamma(2.0, 2.0, (3, 12))
    loss[1, 7] = lost
    at = analysis.gains(loss, np.repeat(np.arange(4), 3))
    for compared in at.values():
        assert np.isnan(compared.estimate[1, [0, 2]]).all()
        assert np.isnan(compared.deleted[:, 1, [0, 2]]).all()
        assert np.isfinite(compared.deleted[:, 0, 2]).all()


@pytest.fixture(scope="module")
def result(loss: xr.DataArray, document: xr.DataArray) -> xr.Dataset:
    return ensemble_gain(loss, document)


def test_gain_and_relative_gain_are_means_over_tokens(
    result: xr.Dataset, loss: xr.DataArray
) -> None:
    a, b = (loss.sel(run=run, step=4).values.ravel() for run in ("dense-seed0", "switch-seed1"))
    gain = -np.logaddexp(-a.astype(float), -b) + LN2
    at = result.sel(pair=f"dense-seed0 {TIMES} switch-seed1", step=4)
    assert float(at["pair_gain"]) == pytest.approx(
        (a.mean() + b.mean()) / 2 - gain.mean(), rel=1e-5
    )
    relative = float(at["pair_gain"]) / ((a.mean() + b.mean()) / 2)
    assert float(at["pair_relative_gain"]) == pytest.approx(relative, rel=1e-5)


def test_deleted_values_are_those_of_the_data_without_the_unit(
    loss: xr.DataArray, document: xr.DataArray
) -> None:
    values = loss.isel(step=0).values.reshape(5, -1)
    unit = np.repeat(np.unique(document, return_inverse=True)[1], loss.sizes["pos"])
    whole = analysis.gains(values, unit)
    part = analysis.gains(values[:, unit != 39], unit[unit != 39])
    for name in whole:
        np.testing.assert_allclose(whole[name].deleted[39], part[name].estimate, rtol=1e-10)


def test_what_an_arm_knows_alone_is_the_excess(result: xr.Dataset, loss: xr.DataArray) -> None:
    """Arms differ by parts of variance 1/4 each, runs by noise: log cosh is close to d²/8."""
    assert result["contrast"].values.tolist() == ["dense against switch"]
    excess = result["excess_gain"].sel(contrast="dense against switch")
    assert (excess > 0.7 * 2 * 0.25 / 8).all()
    assert (excess < 2 * 0.25 / 8).all()
    low, high = result["excess_gain_ci"].isel(contrast=0).transpose("ci_bound", "step")
    assert ((low > 0) & (low < excess) & (excess < high)).all()
    assert result["excess_gain_run_ci"].isnull().all()


def test_arms_that_differ_by_the_noise_of_their_seeds_alone_have_no_excess() -> None:
    rng = np.random.default_rng(0)
    shared = rng.gamma(2.0, 2.0, (1, 1, 200, 20))
    noise = 0.5 * rng.standard_normal((6, 1, 200, 20))
    coords = {
        "run": [f"r{i}" for i in range(6)],
        "step": [0],
        "arm": ("run", ["dense"] * 3 + ["switch"] * 3),
        "architecture": ("run", ["dense"] * 3 + ["moe"] * 3),
    }
    loss = xr.DataArray(shared + noise, coords, ("run", "step", "sequence", "pos"))
    unit = xr.DataArray([f"d{i // 5:02d}" for i in range(200)], dims="sequence")
    at = ensemble_gain(loss, unit).isel(step=0, contrast=0)
    assert float(at["seed_gain"]) > 0.05
    for ci in (at["excess_gain_ci"], at["excess_gain_run_ci"]):
        low, high = ci.values
        assert low < 0 < high < 0.01


def test_at_equal_loss_a_run_gains_nothing_with_its_copy(document: xr.DataArray) -> None:
    rng = np.random.default_rng(0)
    curve = np.array([8.0, 6.0, 5.0, 4.0])[:, None, None] + rng.standard_normal((4, 400, 16))
    other = curve[:, ::-1] + 0.3
    coords = {
        "run": ["a", "b", "c"],
        "step": [0, 1, 2, 4],
        "arm": ("run", ["dense"] * 3),
        "architecture": ("run", ["dense"] * 3),
    }
    dims = ("run", "step", "sequence", "pos")
    loss = xr.DataArray(np.stack([curve, curve, other]), coords, dims)
    gain = ensemble_gain(loss, document, match="loss")["pair_gain"]
    np.testing.assert_allclose(gain.sel(pair=f"a {TIMES} b"), 0, atol=1e-12)
    assert (gain.sel(pair=f"a {TIMES} c") > 0.1).all()


def test_the_report_says_the_gain_of_each_kind(study_folder: Path, tmp_path: Path) -> None:
    command = [str(study_folder), "--match", "loss", "--unit", "document"]
    assert analysis.main([*command, "--report", str(tmp_path)]) == 0
    page = (tmp_path / "ensemble_gain" / "index.md").read_text(encoding="utf-8")
    assert "the mean of two runs' probabilities lowers the loss, in nats, by" in page
    assert "over 14 documents (672 tokens)" in page
    names = {path.name for path in (tmp_path / "ensemble_gain").glob("*.svg")}
    assert names == {"ensemble_gain.svg", "gain_by_arms.svg", "gain_excess.svg"}


def test_without_two_runs_of_two_arms_there_is_no_excess(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_study(tmp_path / "two", {"dense-seed0": "dense", "switch-seed0": "switch"})
    assert analysis.main([str(folder), "--report", str(tmp_path)]) == 0
    assert not (tmp_path / "ensemble_gain" / "gain_excess.svg").exists()


def test_gain_of_every_pair_has_an_interval_that_holds_it(result: xr.Dataset) -> None:
    low, high = result["pair_gain_ci"].transpose("ci_bound", "step", "pair").values
    gain = result["pair_gain"].transpose("step", "pair").values
    assert ((low > 0) & (low < gain) & (gain < high)).all()
    assert result.sizes["pair"] == len(pair_indices(5)[0])

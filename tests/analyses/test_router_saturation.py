import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses import router_saturation as analysis
from analyses.comparison.units import unit_labels
from analyses.reporting.saturation_figures import (
    plot_ages,
    plot_frequency,
    plot_matrices,
    plot_stability,
)
from analyses.router_saturation import router_saturation
from analyses.routing import saturation
from analyses.routing.saturation import MEASURES, compared_steps
from analyses.routing.token_frequency import text_of

N_EXPERTS, STEPS = 4, [0, 1, 3, 7]


@pytest.fixture(scope="module")
def text(probe_set: xr.Dataset) -> xr.Dataset:
    """The probe set, with the frequencies of its six ids."""
    return probe_set.assign(token_frequency=("d_vocab", [900, 500, 300, 200, 100, 50]))


@pytest.fixture(scope="module")
def expert_index(text: xr.Dataset) -> xr.DataArray:
    """Top-1 routes of one layer: looked up; settled from step 3 on for ids below 3; never."""
    rng, token = np.random.default_rng(0), text["token"].values
    noise = rng.integers(0, N_EXPERTS, (3, 4, *token.shape))
    lookup = np.tile(token % N_EXPERTS, (4, 1, 1))
    settles = noise[0].copy()
    settles[2:, token < 3] = noise[1, 0][token < 3]
    values = np.stack([lookup, settles, noise[2], lookup])[:, :, None, ..., None]
    return xr.DataArray(
        values.astype("int16"),
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={
            "run": ["hash-a", "switch-a", "switch-b", "hash-b"],
            "arm": ("run", ["hash", "switch", "switch", "hash"]),
            "step": STEPS,
            "layer": [1],
        },
    )


@pytest.fixture(scope="module")
def losses(text: xr.Dataset) -> xr.DataArray:
    """Losses that come down late for the ids whose routes settle late."""
    token = text["token"].values
    early, late = np.array([1.8, 1.0, 0.3, 0.2]), np.array([1.8, 1.8, 1.7, 0.2])
    curve = np.where(token < 3, early[:, None, None], late[:, None, None])
    runs = ["hash-a", "hash-b", "switch-a", "switch-b"]
    return xr.DataArray(
        np.tile(curve, (4, 1, 1, 1)),
        dims=("run", "step", "sequence", "pos"),
        coords={"run": runs, "step": STEPS},
    )


def _measured(index: xr.DataArray, probe_set: xr.Dataset, **options) -> xr.Dataset:
    unit = unit_labels(probe_set, "document")
    return router_saturation(index, probe_set, unit, n_experts=N_EXPERTS, **options)


@pytest.fixture(scope="module")
def result(expert_index: xr.DataArray, text: xr.Dataset, losses: xr.DataArray) -> xr.Dataset:
    return _measured(expert_index, text, loss=losses)


def test_hash_router_is_saturated_from_the_start_and_nothing_but_lookup(
    result: xr.Dataset,
) -> None:
    at = result.sel(run="hash-a", layer=1)
    for name in ("saturation", "kappa", "floor_last"):
        np.testing.assert_allclose(at[name], 1)
    assert at["beyond_floor_last"].isnull().all()
    assert (at["settled"] == 1).all()
    assert float(at["route_age"]) == 0
    assert (at["change_rate"].isel(step=slice(1, None)) == 0).all()
    assert np.isnan(at["age_frequency_rho"])


def test_planted_step_of_settling_is_found(result: xr.Dataset, text: xr.Dataset) -> None:
    at, early = result.sel(run="switch-a", layer=1), (text["token"].values < 3).mean()
    known = float(at["saturation"].sel(step=3, other_step=7))
    assert known == pytest.approx(early + (1 - early) / N_EXPERTS, abs=0.03)
    assert float(at["settled"].sel(step=3)) == pytest.approx(known)
    assert float(at["kappa"].sel(step=0, other_step=7)) == pytest.approx(0, abs=0.05)
    assert float(at["age_frequency_rho"]) < -0.4
    assert float(at["age_loss_rho"]) > 0.4


def test_random_routes_have_no_kappa_and_the_floor_of_chance(result: xr.Dataset) -> None:
    at = result.sel(run="switch-b", layer=1)
    off = ~np.eye(len(STEPS), dtype=bool)
    np.testing.assert_allclose(at["kappa"].values[off], 0, atol=0.08)
    np.testing.assert_allclose(at["floor_last"], 1 / N_EXPERTS, atol=0.03)
    np.testing.assert_allclose(at["settled"], at["settled_chance"], atol=0.06)
    assert abs(float(at["age_frequency_rho"])) < 0.1


def test_correlations_with_age_agree_with_scipy(
    result: xr.Dataset, expert_index: xr.DataArray, text: xr.Dataset
) -> None:
    code = expert_index.sel(run="switch-a", layer=1).values.reshape(len(STEPS), -1)
    age = [max([0, *(i + 1 for i in range(4) if c[i] != c[-1])]) for c in code.T]
    frequency = text["token_frequency"].values[text["token"].values.ravel()]
    expected = stats.spearmanr(age, frequency).statistic
    found = result.sel(run="switch-a", layer=1)
    assert float(found["age_frequency_rho"]) == pytest.approx(expected)
    assert float(found["route_age"]) == pytest.approx(np.log2(1.0 + np.array(STEPS))[age].mean())


def test_mean_age_is_that_of_its_bins(result: xr.Dataset, text: xr.Dataset) -> None:
    n = text["token"].size
    found = text_of(text, np.zeros(n, dtype=int))
    size = np.bincount(found.bin, minlength=result.sizes["frequency_bin"])
    ages = np.nan_to_num(result["age_by_frequency"].sel(run="switch-a", layer=1))
    assert (ages * size).sum() / n == pytest.approx(
        float(result["route_age"].sel(run="switch-a", layer=1))
    )
    for frequency in np.unique(found.frequency):
        assert len(np.unique(found.bin[found.frequency == frequency])) == 1


def test_every_measure_has_both_intervals(result: xr.Dataset) -> None:
    at = result.sel(each_arm="switch")
    for name in MEASURES:
        value = at[f"arm_{name}"]
        for kind in ("ci", "run_ci"):
            low, high = at[f"arm_{name}_{kind}"].transpose("ci_bound", ...)
            known = value.notnull()
            assert known.any()
            assert (low <= value + 1e-12).where(known, True).all()
            assert (value <= high + 1e-12).where(known, True).all()


def test_order_of_dimensions_and_of_units_does_not_matter(
    result: xr.Dataset, expert_index: xr.DataArray, text: xr.Dataset, losses: xr.DataArray
) -> None:
    turned = slice(None, None, -1)
    changed = _measured(
        expert_index.transpose("top_k", "pos", "sequence", ...).isel(sequence=turned),
        text.isel(sequence=turned),
        loss=losses.isel(sequence=turned),
    )
    for name in result.data_vars:
        np.testing.assert_allclose(changed[name], result[name], atol=1e-9, err_msg=str(name))


def test_dask_gives_the_same_numbers(
    result: xr.Dataset, expert_index: xr.DataArray, text: xr.Dataset, losses: xr.DataArray
) -> None:
    changed = _measured(expert_index, text, loss=losses, dask="local")
    xr.testing.assert_identical(changed, result)


def test_steps_that_a_run_lacks_are_left_out_and_named(
    result: xr.Dataset, expert_index: xr.DataArray, text: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "switch-b", "step": 1}] = -1
    changed = _measured(part, text)
    assert changed["skipped_step"].values.tolist() == [1]
    kept = {"step": [0, 3, 7], "other_step": [0, 3, 7]}
    np.testing.assert_allclose(changed["saturation"], result["saturation"].sel(kept))
    assert "age_loss_rho" not in changed
    for plot in (plot_matrices, plot_stability, plot_ages, plot_frequency):
        plot(changed)


def test_saturation_with_the_step_before_is_a_diagonal_of_the_matrix(result: xr.Dataset) -> None:
    step = np.arange(1, len(STEPS))
    for name in ("saturation", "chance"):
        for suffix in ("", "_ci"):
            matrix = result[f"{name}{suffix}"].transpose("step", "other_step", ...).values
            found = result[f"{name}_previous{suffix}"].transpose("step", ...).values
            np.testing.assert_allclose(found[1:], matrix[step, step - 1])
            assert np.isnan(found[0]).all()


def test_each_of_many_steps_is_compared_with_some(
    result: xr.Dataset,
    expert_index: xr.DataArray,
    text: xr.Dataset,
    losses: xr.DataArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saturation, "MOST_OTHER_STEPS", 3)
    changed = _measured(expert_index, text, loss=losses)
    assert changed["other_step"].values.tolist() == [0, 3, 7]
    assert "Shown are 3 of 4 steps" in analysis._some_steps(changed)
    assert analysis._some_steps(result) == ""
    for name in result.data_vars:
        expected = (
            result[name].sel(other_step=[0, 3, 7])
            if "other_step" in result[name].dims
            else result[name]
        )
        np.testing.assert_allclose(changed[name], expected, atol=1e-12, err_msg=str(name))
    for plot in (plot_matrices, plot_stability):
        plot(changed)


@pytest.mark.parametrize("n_steps", [2, 60, 61, 500])
def test_compared_steps_hold_both_ends_and_no_step_twice(n_steps: int) -> None:
    found = compared_steps(n_steps)
    assert len(found) == min(n_steps, 60)
    assert (np.diff(found) > 0).all()
    assert found[[0, -1]].tolist() == [0, n_steps - 1]


def test_a_step_that_is_there_in_part_is_refused(
    expert_index: xr.DataArray, text: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "switch-b", "step": 3, "sequence": 5}] = -1
    with pytest.raises(ValueError, match="run 'switch-b' lacks choices at step 3; a route"):
        _measured(part, text)


def test_a_single_step_is_refused_with_the_remedy(
    expert_index: xr.DataArray, text: xr.Dataset
) -> None:
    part = expert_index.copy(deep=True)
    part.loc[{"run": "switch-b", "step": STEPS[1:]}] = -1
    with pytest.raises(ValueError, match=r"1 that all runs observed \(switch-b observed 1\); wait"):
        _measured(part, text)


def test_command_writes_what_the_figures_show(reports: SimpleNamespace) -> None:
    folder = reports.folder / "router_saturation"
    result = xr.Dataset.from_dict(json.loads((folder / "results.json").read_text("utf-8")))
    assert (result["saturation"] == 1).all()  # that study's routes are the same at all steps
    rows = (folder / "saturation.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 2 * 2 * 3 * 3
    page = (folder / "index.md").read_text(encoding="utf-8")
    assert "needs the weights, if they were kept" in page
    assert "hash router" not in page


def test_page_says_what_hash_and_ungated_routers_mean(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    write_study(tmp_path / "s", {"hash-seed0": "hash", "ungated-seed0": "ungated"})
    assert analysis.main([str(tmp_path / "s"), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "router_saturation" / "index.md").read_text(encoding="utf-8")
    assert "Its saturation is 1 from step 0 on" in page
    assert "about the router, not about the output" in page

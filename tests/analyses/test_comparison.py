"""The labelled layer: where runs are compared, what is read for it, and how pairs are summed up."""

import dask.config
import numpy as np
import pytest
import xarray as xr

from analyses.comparison.along import along
from analyses.comparison.contrasts import arm_contrasts, ceiling
from analyses.comparison.controls import difficulty
from analyses.comparison.loss_similarity import loss_similarity
from analyses.comparison.runs import pair_coordinates, run_coordinates, sorted_by_arm
from analyses.comparison.summary import PLAIN, R2, R, summarize
from analyses.comparison.units import token_units, unit_labels
from analyses.comparison.walk import Compared, mean_loss, walk
from analyses.statistics.pairs import pair_indices

TIMES = "\N{MULTIPLICATION SIGN}"


def curves(*rows: list[float], steps: tuple[int, ...] = (0, 1, 2, 4)) -> xr.DataArray:
    return xr.DataArray(
        np.array(rows), {"run": [f"r{i}" for i in range(len(rows))], "step": list(steps)},
        ("run", "step"),
    )  # fmt: skip


def test_unit_is_the_work_or_the_document() -> None:
    probe_set = xr.Dataset(
        {"document": ("sequence", ["b1", "b1", "a1"]), "work": ("sequence", ["b", "b", "a"])}
    )
    assert unit_labels(probe_set, "work").attrs == {"unit": "work"}
    names, index = token_units(unit_labels(probe_set, "work"), n_pos=2)
    assert names.tolist() == ["a", "b"]
    assert index.tolist() == [1, 1, 1, 1, 0, 0]


def test_runs_are_sorted_dense_first_then_by_arm_and_name(loss: xr.DataArray) -> None:
    shuffled = sorted_by_arm(loss.isel(run=[4, 2, 0, 3, 1]))
    expected = ["dense-seed0", "dense-seed1", "dense_20-seed0", "switch-seed0", "switch-seed1"]
    assert shuffled["run"].values.tolist() == expected
    pairs = pair_coordinates(run_coordinates(shuffled))
    assert pairs["pair"].values[0] == f"dense-seed0 {TIMES} dense-seed1"
    assert pairs["pair_arms"].values[2] == f"dense {TIMES} switch"
    kinds, counts = np.unique(pairs["pair_kind"], return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {
        "MoE-MoE": 1, "dense-MoE": 6, "dense-dense": 3,
    }  # fmt: skip


def test_at_equal_steps_every_step_is_read_once() -> None:
    places = along(curves([4, 3, 2, 1], [4, 2, 1, 0]), "step")
    assert places.dim == "step"
    assert places.place.values.tolist() == [0, 1, 2, 4]
    assert (places.step[:, 0] == np.arange(4)[:, None]).all()
    assert (places.weight == 1).all()


def test_at_equal_loss_the_mean_loss_of_every_run_is_that_of_the_level() -> None:
    losses = curves([8, 6, 4, 1], [7, 7.5, 3, 2])
    places = along(losses, "loss", n_levels=5)
    assert places.dim == "loss_level"
    np.testing.assert_allclose(places.place, [7.5, 6.125, 4.75, 3.375, 2.0], atol=1e-4)
    values = np.take_along_axis(losses.values.T, places.step.reshape(-1, 2), axis=0)
    mean = (places.weight * values.reshape(places.step.shape)).sum(axis=1)
    np.testing.assert_allclose(mean, np.tile(places.place.values[:, None], (1, 2)))
    assert ((places.weight >= 0) & (places.weight <= 1)).all()


def test_steps_that_a_run_lacks_are_passed_over() -> None:
    places = along(curves([8, np.nan, 4, 2], [8, 6, 4, 2]), "loss", n_levels=3)
    assert places.step[:, :, 0].tolist() == [[0, 2], [0, 2], [2, 3]]


def test_runs_without_a_common_loss_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"r0 never gets below 5\.000 nats and r1 never .* 4\.000"):
        along(curves([8, 7, 6, 5], [4, 3, 2, 1]), "loss")


def test_mean_loss_is_missing_where_a_loss_is_not_finite(loss: xr.DataArray) -> None:
    broken = loss.copy(deep=True)
    broken[1, 2, 0, 0] = np.inf
    mean = mean_loss(broken)
    expected = loss.astype("float64").mean(("sequence", "pos"))
    assert np.isnan(mean[1, 2])
    mean[1, 2] = expected[1, 2]
    np.testing.assert_allclose(mean, expected)


def squared_gap(values: np.ndarray, unit: np.ndarray) -> dict[str, Compared]:
    """A measure known by hand: the squared difference of two models' mean losses."""
    mean = values.mean(axis=-1)
    matrix = (mean[:, None] - mean) ** 2
    return {"gap": Compared(matrix, np.stack([matrix] * (unit.max() + 1)))}


@pytest.mark.parametrize("match", ["step", "loss"])
def test_every_pair_is_compared_at_its_place(match: str) -> None:
    """At equal loss the sides are coupled as by one uniform number: a run is the same as itself."""
    mean = np.array([[8.0, 6, 4, 1], [7, 7.5, 3, 2], [8, 6, 4, 1]])
    values = xr.DataArray(
        np.broadcast_to(mean[:, :, None, None], (3, 4, 6, 2)),
        dims=("run", "step", "sequence", "pos"),
        coords={"run": list("abc"), "step": [0, 1, 2, 4]},
    )
    unit = xr.DataArray(list("xxyyzz"), dims="sequence", attrs={"unit": "work"})
    places = along(mean_loss(values), match)
    estimate, deleted = walk(values, unit, places, squared_gap)["gap"]
    assert estimate.dims == (places.dim, "pair")
    assert deleted.dims == ("unit", places.dim, "pair")
    assert deleted["n_tokens"].values.tolist() == [4, 4, 4]
    if match == "step":
        first, second = pair_indices(3)
        np.testing.assert_allclose(estimate, ((mean[first] - mean[second]) ** 2).T)
        return
    np.testing.assert_allclose(estimate[:, 1], 0, atol=1e-12)
    u = (np.arange(20_000) + 0.5) / 20_000
    for place, gap in enumerate(estimate.values[:, 0]):
        a, b = (
            np.where(u < places.weight[place, 0, run], *mean[run, places.step[place, :, run]])
            for run in (0, 1)
        )
        assert gap == pytest.approx(((a - b) ** 2).mean(), abs=1e-2)


def test_dask_gives_the_same_numbers(loss: xr.DataArray, document: xr.DataArray) -> None:
    loss = sorted_by_arm(loss)
    places = along(mean_loss(loss), "step")
    here = walk(loss, document, places, squared_gap)["gap"]
    there = walk(loss, document, places, squared_gap, dask="local")["gap"]
    for ours, theirs in zip(here, there, strict=True):
        xr.testing.assert_identical(ours, theirs)


def test_a_scheduler_that_does_not_answer_is_named(loss: xr.DataArray) -> None:
    with pytest.raises(ValueError, match="no dask scheduler answers at 'nowhere'"):
        mean_loss(loss, dask="nowhere")
    assert dask.config.get("scheduler", None) is None  # and the rest of dask goes on without it


@pytest.fixture(scope="module")
def controls_and_losses() -> tuple[xr.Dataset, np.ndarray, np.ndarray]:
    """Two models whose losses share n-gram surprisal, frequency, and a part of their own."""
    rng = np.random.default_rng(0)
    shape, ids = (60, 10), 50
    target = rng.integers(0, ids, shape)
    surprisal = rng.gamma(2.0, 1.0, (2, *shape)).astype("float32")
    probe_set = xr.Dataset(
        {
            "target": (("sequence", "pos"), target),
            "ngram_surprisal": (("order", "sequence", "pos"), surprisal),
            "token_frequency": ("d_vocab", rng.integers(1, 1000, ids)),
        },
        {"order": [1, 2]},
    )
    shared = surprisal[0] + 0.3 * surprisal[1] ** 2 + rng.standard_normal(shape)
    losses = np.stack([shared + 0.5 * rng.standard_normal(shape) for _ in range(2)])
    return probe_set, losses.reshape(2, -1), np.repeat(np.arange(20), 30)


def test_partial_r_is_that_of_least_squares_residuals(controls_and_losses) -> None:
    probe_set, losses, unit = controls_and_losses
    controls = difficulty(probe_set)
    assert list(controls.rungs) == ["1-gram", "+ 2-gram", "+ frequency", "+ position"]
    z = loss_similarity(losses, unit, controls=controls)["partial_r2"].estimate
    raw = np.arctanh(np.corrcoef(losses)[0, 1])
    for i, n_columns in enumerate(controls.rungs.values()):
        design = np.concatenate([np.ones((1, losses.shape[1])), controls.columns[:n_columns]]).T
        residual = losses.T - design @ np.linalg.lstsq(design, losses.T, rcond=None)[0]
        expected = np.arctanh(np.corrcoef(residual.T)[0, 1])
        assert z[i, 0, 1] == pytest.approx(expected, rel=1e-6)
        assert z[i, 0, 1] < raw


def test_deleted_values_are_those_of_the_data_without_the_unit(controls_and_losses) -> None:
    """Exact for every measure but Spearman, whose ranks are those of all data."""
    probe_set, losses, unit = controls_and_losses
    controls = difficulty(probe_set)
    whole = loss_similarity(losses, unit, controls=controls)
    kept = unit != 3
    fewer = controls._replace(columns=controls.columns[:, kept])
    renumbered = np.unique(unit[kept], return_inverse=True)[1]
    part = loss_similarity(losses[:, kept], renumbered, controls=fewer)
    for name, compared in whole.items():
        tolerance = 5e-3 if name == "spearman" else 1e-9
        np.testing.assert_allclose(
            compared.deleted[3][..., 0, 1], part[name].estimate[..., 0, 1], rtol=tolerance
        )


def test_a_model_that_is_not_finite_is_missing_in_every_measure(controls_and_losses) -> None:
    probe_set, losses, unit = controls_and_losses
    losses = np.concatenate([losses, losses[:1]])
    losses[2, 5] = np.inf
    for compared in loss_similarity(losses, unit, controls=difficulty(probe_set)).values():
        assert np.isnan(compared.estimate[..., 0, 2]).all()
        assert np.isfinite(compared.estimate[..., 0, 1]).all()


def runs_of(arms: dict[str, int]) -> xr.Dataset:
    arm = [a for a, n in arms.items() for _ in range(n)]
    architecture = ["dense" if a.startswith("dense") else "moe" for a in arm]
    names = [f"{a}-seed{i}" for a, n in arms.items() for i in range(n)]
    return xr.Dataset(
        coords={"run": names, "arm": ("run", arm), "architecture": ("run", architecture)}
    )


def one_factor(reliability: dict[str, float], arms: dict[str, int], own: float = 1.0):
    """z of pairs whose r is a_i a_j, times `own` inside an arm, and the same without each unit."""
    runs = runs_of(arms)
    a = np.array([reliability[arm] for arm in runs["arm"].values])
    first, second = pair_indices(len(a))
    same = runs["arm"].values[first] == runs["arm"].values[second]
    z = np.arctanh(a[first] * a[second] * np.where(same, own, 1.0))
    estimate = xr.DataArray(z[None], {"step": [3]}, ("step", "pair"))
    noise = 1 + 1e-3 * np.random.default_rng(0).standard_normal((12, 1, len(z)))
    deleted = xr.DataArray(z * noise, {"step": [3]}, ("unit", "step", "pair"))
    return estimate, deleted.assign_coords(unit=list("abcdefghijkl")), runs


def test_noise_of_single_runs_alone_leaves_rho2_at_one_and_the_kinds_at_the_ceiling() -> None:
    arms = {"dense": 3, "switch": 3}
    estimate, deleted, runs = one_factor({"dense": 0.95, "switch": 0.8}, arms)
    contrast = arm_contrasts(estimate, deleted, runs)
    assert contrast["contrast"].values.tolist() == ["dense against switch"]
    np.testing.assert_allclose(contrast["rho2"], 1)
    result = summarize("r2", estimate, deleted, runs, scale=R2, long_name="r²")
    np.testing.assert_allclose(ceiling(result)["ceiling"], result["kind_r2"].sel(kind="dense-MoE"))
    raw = result["kind_r2"].isel(step=0)
    assert raw.sel(kind="MoE-MoE") < raw.sel(kind="dense-MoE") < raw.sel(kind="dense-dense")


def test_what_arms_share_within_themselves_alone_lowers_rho2_by_its_square() -> None:
    arms = {"dense": 3, "switch": 3}
    parts = one_factor({"dense": 0.9, "switch": 0.8}, arms, own=1.05)
    np.testing.assert_allclose(arm_contrasts(*parts)["rho2"], 1.05**-2)


def test_no_contrast_without_two_runs_of_two_arms() -> None:
    parts = one_factor({"dense": 0.9, "switch": 0.8}, {"dense": 3, "switch": 1})
    assert arm_contrasts(*parts).sizes["contrast"] == 0


def test_intervals_over_runs_need_three_of_an_arm_or_two_of_two() -> None:
    arms = {"dense": 3, "switch": 2}
    estimate, deleted, runs = one_factor({"dense": 0.9, "switch": 0.8}, arms)
    estimate = estimate * (1 + 0.01 * np.arange(10))
    result = summarize("x", estimate, deleted, runs, scale=R, long_name="x")
    there = result["arms_x_run_ci"].notnull().all("ci_bound").isel(step=0)
    assert dict(zip(result["arms"].values, there.values.tolist(), strict=True)) == {
        f"dense {TIMES} dense": True,
        f"dense {TIMES} switch": True,
        f"switch {TIMES} switch": False,
    }


def test_a_summary_holds_the_mean_over_pairs_on_its_inner_scale() -> None:
    estimate, deleted, runs = one_factor({"dense": 0.9, "switch": 0.8}, {"dense": 2, "switch": 2})
    for scale in (R2, R, PLAIN):
        result = summarize("x", estimate, deleted, runs, scale=scale, long_name="x", units="nat")
        between = estimate.values[0, pair_coordinates(runs)["pair_kind"] == "dense-MoE"]
        at = result.sel(kind="dense-MoE", step=3)
        assert float(at["kind_x"]) == pytest.approx(float(scale.value(between.mean())))
        assert int(at["kind_n_pairs"]) == 4
        low, high = at["kind_x_ci"].values
        assert low < float(at["kind_x"]) < high
        assert result["kind_x"].attrs == {"long_name": "x", "units": "nat"}
